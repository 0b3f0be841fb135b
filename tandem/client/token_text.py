"""The text of a streamed job, from its `tokens` events."""

from collections.abc import Generator, Iterable

from tandem.errors import WorkerLost
from tandem.job import JobEvent


def new_text(events: Iterable[JobEvent]) -> Generator[str, None, str]:
    """The pieces of the text, each once, also if the worker is lost, or the attempt fails, and the next begins anew.

    A new attempt's text is held back as far as it repeats what was yielded already. Raises WorkerLost if it says
    something else: what was yielded cannot be taken back. Returns the last state that was told, empty if none was.
    """
    yielded = written = state = ""
    for event in events:
        if event.type == "state":
            state = event.data["state"]
            if state == "running":
                written = ""
        if event.type != "tokens":
            continue
        written += event.data["text"]
        shared = min(len(written), len(yielded))
        if written[:shared] != yielded[:shared]:
            raise WorkerLost(
                "the job had to be begun again, and its next attempt writes another text; ask again, with a seed or "
                "at temperature 0 so that every attempt writes the same"
            )
        if len(written) > len(yielded):
            piece, yielded = written[len(yielded) :], written
            yield piece
    return state
