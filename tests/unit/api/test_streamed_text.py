"""The text of one stream over several attempts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.routes.openai.streamed_text import StreamedText
from tandem.errors import WorkerLost


def test_the_pieces_of_one_attempt_are_sent_as_they_come() -> None:
    text = StreamedText()
    assert [text.add("Hel"), text.add("lo"), text.finish("Hello")] == ["Hel", "lo", ""]


def test_what_a_new_attempt_repeats_is_held_back() -> None:
    text = StreamedText()
    text.add("Hello")
    text.restart()
    assert [text.add("He"), text.add("llo, "), text.add("you")] == ["", ", ", "you"]


def test_another_text_cannot_follow_what_was_sent() -> None:
    text = StreamedText()
    text.add("Hello")
    text.restart()
    text.add("He")
    with pytest.raises(WorkerLost, match="temperature 0"):
        text.add("y")


def test_the_end_of_the_result_is_sent_if_no_piece_brought_it() -> None:
    text = StreamedText()
    text.add("Hel")
    assert text.finish("Hello") == "lo"


def test_a_result_that_is_shorter_than_what_was_sent_is_an_error() -> None:
    text = StreamedText()
    text.add("Hello")
    with pytest.raises(WorkerLost):
        text.finish("Hel")


@given(st.text(), st.lists(st.integers(min_value=0, max_value=20), max_size=4), st.integers(1, 5))
def test_however_often_attempts_are_lost_the_text_is_sent_once(text: str, losses: list[int], size: int) -> None:
    """Each attempt writes the same text and is lost after some pieces; the last one ends it."""
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    stream = StreamedText()
    sent = ""
    for lost_after in losses:
        sent += "".join(stream.add(piece) for piece in pieces[:lost_after])
        stream.restart()
    sent += "".join(stream.add(piece) for piece in pieces)
    sent += stream.finish(text)
    assert sent == text
