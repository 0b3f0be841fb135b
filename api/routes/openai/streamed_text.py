"""The text of one stream, over all attempts of its job."""

from tandem.errors import WorkerLost


class StreamedText:
    """What was sent, and how far the running attempt has come.

    A lost, failed or paused attempt is made again from the beginning. What its successor repeats is held back; if it
    writes something else (sampling without a seed), the stream cannot go on: what was sent cannot be taken back.
    """

    def __init__(self) -> None:
        self.sent = ""
        self._written = ""

    def restart(self) -> None:
        """Another attempt begins."""
        self._written = ""

    def add(self, piece: str) -> str:
        """The part of a piece that is to be sent now. Raises WorkerLost if the attempts' texts differ."""
        return self._advance(self._written + piece)

    def finish(self, text: str) -> str:
        """What of the whole text is still to be sent. Raises WorkerLost if the stream has lost or changed some."""
        rest = self._advance(text)
        if self.sent != text:
            raise WorkerLost("the streamed text is not the result's; GET the job for its result")
        return rest

    def _advance(self, written: str) -> str:
        shared = min(len(written), len(self.sent))
        if written[:shared] != self.sent[:shared]:
            raise WorkerLost(
                "the job had to be begun again, and its next attempt writes another text than was sent; ask again, "
                "at temperature 0 or with a seed so that every attempt writes the same"
            )
        self._written = written
        rest = written[len(self.sent) :]
        self.sent += rest
        return rest
