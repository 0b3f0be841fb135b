"""Which rows share a forward: all that can, within the adapter slots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.encoders.adapter_planning import plan_forwards
from worker.engine.adapters.bank import BASE, AdapterBank

NAMES = st.sampled_from([None, "a", "b", "c", "d", "e"])


@pytest.mark.parametrize(
    ("adapters", "slots", "forwards"),
    [
        (["a", None, "b", "a"], 2, [[0, 1, 2, 3]]),
        (["a", "b", "c", "a", None], 2, [[0, 1, 3, 4], [2]]),
        ([None, None], 0, [[0, 1]]),
        (["lone", "a", None, "lone"], 2, [[1, 2], [0, 3]]),
        (["lone", None, "other-lone"], 1, [[1], [0], [2]]),
    ],
)
def test_rows_share_as_few_forwards_as_the_slots_allow(
    adapters: list[str | None], slots: int, forwards: list[list[int]]
) -> None:
    assert plan_forwards(adapters, slots=slots, alone={"lone", "other-lone"}) == forwards


@given(adapters=st.lists(NAMES, min_size=1, max_size=20), slots=st.integers(1, 4), alone=st.sets(NAMES.filter(bool)))
def test_every_row_runs_once_and_no_forward_needs_more_adapters_than_slots(
    adapters: list[str | None], slots: int, alone: set[str]
) -> None:
    forwards = plan_forwards(adapters, slots=slots, alone=alone)
    assert sorted(place for places in forwards for place in places) == list(range(len(adapters)))
    for places in forwards:
        used = {adapters[place] for place in places}
        assert len(used - {None}) <= slots
        assert used.isdisjoint(alone) or len(used) == 1


def test_a_run_covers_as_many_rows_of_a_layer_as_its_texts_have() -> None:
    """A layer sees tokens, a pooler texts; whatever is no multiple of the texts belongs to none of them."""
    bank = AdapterBank(slots=2, rank=1)
    with bank.step_in_runs([(0, 1), (BASE, 2)]):
        assert list(bank.runs(12)) == [(0, slice(0, 4)), (BASE, slice(4, 12))]
        assert list(bank.runs(3)) == [(0, slice(0, 1)), (BASE, slice(1, 3))]
        with pytest.raises(RuntimeError, match="a layer sees 4 rows"):
            list(bank.runs(4))
    assert not bank.has_runs
