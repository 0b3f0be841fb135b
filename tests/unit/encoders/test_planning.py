"""Which encoder rows run together."""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from worker.encoders.planning import plan_batches, take_fair_share

lengths = st.lists(st.integers(min_value=1, max_value=600), max_size=60)


@dataclass(eq=False)
class Row:
    size: int
    company: str = "all"

    def __len__(self) -> int:
        return self.size


def rows_of(sizes: list[int]) -> list[Row]:
    """Rows that differ by identity and have these lengths."""
    return [Row(size) for size in sizes]


@given(lengths, st.lists(st.sampled_from("abc"), min_size=60, max_size=60), st.integers(min_value=1, max_value=2000))
def test_only_rows_of_equal_company_run_together(sizes: list[int], companies: list[str], budget: int) -> None:
    rows = [Row(size, company) for size, company in zip(sizes, companies, strict=False)]
    planned = plan_batches(rows, budget)
    assert all(len({row.company for row in batch}) == 1 for batch in planned)
    assert sorted(id(row) for batch in planned for row in batch) == sorted(map(id, rows))


@given(lengths, st.integers(min_value=1, max_value=2000))
def test_every_row_is_in_exactly_one_batch(sizes: list[int], budget: int) -> None:
    rows = rows_of(sizes)
    planned = [id(row) for batch in plan_batches(rows, budget) for row in batch]
    assert sorted(planned) == sorted(id(row) for row in rows)


@given(lengths, st.integers(min_value=1, max_value=2000))
def test_a_batch_keeps_the_budget_and_only_a_lone_row_may_exceed_it(sizes: list[int], budget: int) -> None:
    for batch in plan_batches(rows_of(sizes), budget):
        padded = len(batch) * max(len(row) for row in batch)
        assert padded <= budget or len(batch) == 1


@given(lengths, st.integers(min_value=1, max_value=2000))
def test_rows_come_in_rising_length(sizes: list[int], budget: int) -> None:
    planned = [len(row) for batch in plan_batches(rows_of(sizes), budget) for row in batch]
    assert planned == sorted(sizes)


@given(lengths, st.integers(min_value=1, max_value=2000))
def test_a_batch_is_closed_only_when_the_next_row_does_not_fit(sizes: list[int], budget: int) -> None:
    batches = plan_batches(rows_of(sizes), budget)
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * len(following[0]) > budget


def test_a_row_longer_than_the_budget_goes_alone() -> None:
    batches = plan_batches(rows_of([900, 10, 20, 900]), budget=100)
    assert [[len(row) for row in batch] for batch in batches] == [[10, 20], [900], [900]]


@given(st.lists(lengths, max_size=6), st.integers(min_value=1, max_value=2000))
def test_a_share_moves_rows_and_loses_none(callers: list[list[int]], tokens: int) -> None:
    queues = [deque(rows_of(sizes)) for sizes in callers]
    before = sorted(id(row) for queue in queues for row in queue)
    taken = take_fair_share(queues, tokens)
    assert sorted([id(row) for row in taken] + [id(row) for queue in queues for row in queue]) == before
    held = sum(len(row) for row in taken)
    assert held >= tokens or not any(queues)
    assert held - len(taken[-1]) < tokens if taken else not any(queues)


@given(st.lists(lengths, min_size=1, max_size=6), st.integers(min_value=1, max_value=2000))
def test_no_caller_gets_two_rows_more_than_another_that_still_waits(callers: list[list[int]], tokens: int) -> None:
    queues = [deque(rows_of(sizes)) for sizes in callers]
    take_fair_share(queues, tokens)
    got = [len(sizes) - len(queue) for sizes, queue in zip(callers, queues, strict=True)]
    waiting = [count for count, queue in zip(got, queues, strict=True) if queue]
    assert not waiting or max(got) - min(waiting) <= 1


def test_a_caller_with_one_row_does_not_wait_for_another_with_many() -> None:
    many, one = deque(rows_of([10] * 1000)), deque(rows_of([10]))
    assert len(take_fair_share([many, one], cost=100)) == 10
    assert not one
