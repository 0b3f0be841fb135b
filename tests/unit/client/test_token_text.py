"""The text of a stream, whatever happens to the worker that writes it."""

import pytest

from tandem import WorkerLost
from tandem.client.token_text import new_text
from tandem.job import JobEvent


def running(attempt: int) -> JobEvent:
    return JobEvent(f"{attempt}-0", "state", {"state": "running", "attempt": attempt})


def tokens(text: str) -> JobEvent:
    return JobEvent("1-1", "tokens", {"text": text})


def test_pieces_come_as_they_are_written() -> None:
    assert list(new_text([running(1), tokens("The "), tokens("answer")])) == ["The ", "answer"]


def test_a_second_attempt_goes_on_where_the_first_broke() -> None:
    """It writes the beginning again, in other pieces; nobody sees that twice."""
    events = [
        running(1),
        tokens("The "),
        tokens("answer"),
        running(2),
        tokens("The ans"),
        tokens("wer is"),
        tokens(" 4"),
    ]
    assert list(new_text(events)) == ["The ", "answer", " is", " 4"]


@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_the_state_in_which_the_job_ended_is_returned(end: str) -> None:
    """So that whoever streamed need not ask the service how it ended."""
    pieces = new_text([running(1), tokens("The answer"), JobEvent("2-0", "state", {"state": end})])

    assert next(pieces) == "The answer"
    with pytest.raises(StopIteration) as ended:
        next(pieces)
    assert ended.value.value == end


def test_a_second_attempt_that_says_something_else_is_an_error() -> None:
    with pytest.raises(WorkerLost, match="seed"):
        list(new_text([running(1), tokens("The answer"), running(2), tokens("A guess")]))
