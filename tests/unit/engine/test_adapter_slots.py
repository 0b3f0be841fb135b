"""Which adapter is in which slot."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.scheduling.adapter_slots import AdapterClaim, AdapterSlots


def test_the_least_recently_used_adapter_leaves_first() -> None:
    slots = AdapterSlots(2)
    for adapter in ("a", "b", "a"):
        slots.claim(adapter)
        slots.release(adapter)

    assert slots.claim("c") == AdapterClaim(slot=1, is_miss=True)
    assert list(slots.resident) == ["a", "c"]


def test_an_adapter_in_use_is_never_evicted() -> None:
    slots = AdapterSlots(2)
    slots.claim("a")
    slots.claim("b")
    slots.release("b")

    assert slots.claim("c") == AdapterClaim(slot=1, is_miss=True)
    assert slots.claim("d") is None


def test_an_adapter_is_in_use_until_its_last_user_releases_it() -> None:
    slots = AdapterSlots(1)
    slots.claim("a")
    assert slots.claim("a") == AdapterClaim(slot=0, is_miss=False)
    slots.release("a")
    assert slots.claim("b") is None
    slots.release("a")
    assert slots.claim("b") == AdapterClaim(slot=0, is_miss=True)


def test_a_pinned_adapter_keeps_its_slot_until_it_is_unpinned() -> None:
    slots = AdapterSlots(2)
    slots.pin(frozenset({"a"}))
    for adapter in ("a", "b", "c"):
        slots.claim(adapter)
        slots.release(adapter)
    assert list(slots.resident) == ["a", "c"]

    slots.pin(frozenset())
    assert slots.claim("d") == AdapterClaim(slot=0, is_miss=True)


def test_one_slot_is_left_to_adapters_that_are_not_pinned() -> None:
    slots = AdapterSlots(2)
    slots.pin(frozenset({"a", "b"}))
    for adapter in ("a", "b", "c"):
        assert slots.claim(adapter) is not None
        slots.release(adapter)
    assert list(slots.resident) == ["a", "c"]


def test_a_forgotten_adapter_must_be_loaded_again() -> None:
    slots = AdapterSlots(1)
    slots.claim("a")
    with pytest.raises(RuntimeError, match="in use"):
        slots.forget("a")
    slots.release("a")
    slots.forget("a")

    assert slots.claim("a") == AdapterClaim(slot=0, is_miss=True)


def test_a_bank_without_slots_serves_no_adapter() -> None:
    assert AdapterSlots(0).claim("a") is None


@settings(deadline=None)
@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef")), max_size=60))
def test_no_slot_ever_holds_two_adapters(count: int, uses: list[tuple[bool, str]]) -> None:
    slots = AdapterSlots(count)
    held: list[str] = []
    for is_claim, adapter in uses:
        before = slots.resident
        if is_claim:
            claim = slots.claim(adapter)
            if claim is None:
                assert len(set(held)) == count
                assert adapter not in held
                continue
            held.append(adapter)
            assert claim.is_miss == (adapter not in before)
        elif adapter in held:
            held.remove(adapter)
            slots.release(adapter)
        resident = slots.resident
        assert len(set(resident.values())) == len(resident) <= count
        assert set(held) <= set(resident)
        assert slots.used == len(set(held))
