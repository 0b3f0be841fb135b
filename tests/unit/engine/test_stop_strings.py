"""Stop strings in text that arrives in pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.text.stop_strings import Decided, StopStrings


def run(stop: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    """The text that comes out of the pieces, and whether a stop string ended it."""
    strings, text = StopStrings(stop), ""
    for piece in pieces:
        decided = strings.push(piece)
        text += decided.text
        if decided.stopped:
            return text, True
    return text + strings.flush(), False


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    strings = StopStrings(("\n\nUser:",))

    assert strings.push("Hi.\n") == Decided("Hi.", stopped=False)
    assert strings.push("\nUs") == Decided("", stopped=False)
    assert strings.push("ually") == Decided("\n\nUsually", stopped=False)
    assert strings.push("\n\nUser: next") == Decided("", stopped=True)


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert StopStrings(()).push("anything") == Decided("anything", stopped=False)


def test_what_is_held_back_comes_out_at_the_end() -> None:
    assert run(("END",), ["the EN"]) == ("the EN", False)


@pytest.mark.parametrize(
    ("stop", "text", "kept"),
    [
        (("aab",), "aaab", "a"),
        (("abcd", "c"), "xabcd", "xab"),
        (("bc", "abc"), "xabc", "x"),
        (("x",), "x", ""),
        (("東京",), "日本の東京です", "日本の"),
    ],
)
def test_the_first_complete_stop_string_ends_the_text(stop: tuple[str, ...], text: str, kept: str) -> None:
    assert run(stop, [text]) == (kept, True)
    assert run(stop, list(text)) == (kept, True)


@settings(deadline=None)
@given(
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4).map(tuple),
    st.lists(st.text("ab\n", max_size=5), max_size=8),
)
def test_the_borders_of_the_pieces_make_no_difference(stop: tuple[str, ...], pieces: list[str]) -> None:
    text = "".join(pieces)

    cut, stopped = run(stop, pieces)

    assert (cut, stopped) == run(stop, [text]) == run(stop, list(text))
    assert stopped == any(one in text for one in stop)
    assert not any(one in cut for one in stop)
    assert text.startswith(cut)
    assert stopped or cut == text
