"""Slots that keep what they hold, and the prompts that go on from it, without a model."""

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.scheduling.slot_contents import (
    MIN_REUSED_TOKENS,
    Placement,
    SlotContent,
    SlotContents,
    common_beginning,
)

tokens = st.lists(st.integers(0, 2), max_size=40)


def held(*texts: list[int], slots: int = 4) -> SlotContents:
    """Contents whose first slots hold `texts`, the first one longest ago."""
    contents = SlotContents(slots)
    taken = [contents.take() for _ in texts]
    for slot, text in zip(taken, texts, strict=True):
        contents.release(slot, SlotContent("key", text))
    return contents


@given(tokens, tokens, st.integers(-1, 50))
def test_the_common_beginning_is_what_a_plain_comparison_finds(one: list[int], other: list[int], limit: int) -> None:
    plain = 0
    while plain < min(len(one), len(other), limit) and one[plain] == other[plain]:
        plain += 1

    assert common_beginning(one, other, limit=limit) == plain


def test_the_next_turn_of_a_conversation_goes_on_in_its_slot() -> None:
    contents = held(list(range(50)))

    assert contents.place("key", list(range(80)), {}) == Placement(0, reused=50, copy_from=None)


def test_a_short_common_beginning_is_copied_and_the_long_content_kept() -> None:
    contents = held(list(range(100)))

    assert contents.place("key", [*range(20), 7], {}) == Placement(1, reused=20, copy_from=0)
    assert contents.match("key", list(range(101)), {}) == (0, 100)


def test_a_running_neighbours_beginning_is_copied() -> None:
    contents = SlotContents(2)
    slot = contents.take()
    running = {slot: SlotContent("key", range(30))}

    assert contents.place("key", list(range(40)), running) == Placement(1, reused=30, copy_from=0)


def test_the_last_token_is_always_computed() -> None:
    contents = held(list(range(30)))

    assert contents.place("key", list(range(30)), {}).reused == 29


def test_another_key_shares_nothing() -> None:
    contents = held(list(range(30)))

    assert contents.place("other", list(range(30)), {}).reused == 0
    assert contents.place(None, list(range(30)), {}).reused == 0


def test_a_beginning_that_is_not_worth_it_is_read_again() -> None:
    contents = held(list(range(MIN_REUSED_TOKENS - 1)) + [999] * 30)

    assert contents.place("key", list(range(30)), {}).reused == 0


def test_empty_slots_go_first_and_then_the_content_that_was_not_used_for_longest() -> None:
    contents = held(list(range(20)), list(range(100, 120)), slots=3)
    places = [contents.place("key", list(range(500 * number, 500 * number + 9)), {}).slot for number in (1, 2, 3)]

    assert places == [2, 0, 1]


def test_copying_from_a_content_counts_as_using_it() -> None:
    contents = held([*range(20), *range(900, 990)], list(range(100, 120)), slots=3)
    copied = contents.place("key", [*range(20), 5], {})
    assert copied == Placement(2, reused=20, copy_from=0)

    assert contents.place("key", [77] * 9, {}).slot == 1


@given(st.lists(st.tuples(st.booleans(), tokens, st.sampled_from("ab")), max_size=60))
def test_a_slot_is_never_given_twice_and_what_is_reused_is_there(
    events: list[tuple[bool, list[int], str]],
) -> None:
    """A model of the memory: each slot's list of tokens, changed as the engine would change it."""
    contents = SlotContents(3)
    memory: dict[int, tuple[str, list[int]]] = {}
    running: dict[int, tuple[str, list[int]]] = {}
    for ends, prompt, key in events:
        if ends and running:
            slot = next(iter(running))
            owner, text = running.pop(slot)
            contents.release(slot, SlotContent(owner, text))
        elif contents.free and prompt:
            in_use = {slot: SlotContent(owner, text) for slot, (owner, text) in running.items()}
            place = contents.place(key, prompt, in_use)
            assert place.slot not in running
            if place.reused:
                source = place.slot if place.copy_from is None else place.copy_from
                assert memory[source][0] == key
                assert memory[source][1][: place.reused] == prompt[: place.reused]
            memory[place.slot] = running[place.slot] = (key, prompt)
        assert contents.free == 3 - len(running)
