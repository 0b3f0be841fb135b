"""Which rows run together, decided in plain Python.

A row costs its padded length: a batch of like lengths wastes little, and one of mixed lengths can be slower than its
texts one by one.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar


class Row(Protocol):
    @property
    def company(self) -> Hashable:
        """Only rows of equal company may run together."""

    def __len__(self) -> int:
        """Its cost: tokens, pixels or samples."""


RowT = TypeVar("RowT", bound=Row)


def take_fair_share(waiting: Sequence[deque[RowT]], cost: int) -> list[RowT]:
    """Take rows out of the callers' queues, one from each in turn, until they cost `cost` or none is left.

    So a caller with few rows is through after one round, however many rows another has.
    """
    taken: list[RowT] = []
    held = 0
    queues = deque(queue for queue in waiting if queue)
    while queues and held < cost:
        queue = queues.popleft()
        taken.append(queue.popleft())
        held += len(taken[-1])
        if queue:
            queues.append(queue)
    return taken


def plan_batches(rows: Sequence[RowT], budget: int) -> list[list[RowT]]:
    """Cut `rows` into batches of equal company and like length, of at most `budget` padded cost (rows · longest).

    Every row is in exactly one batch, and companies keep the order of their first rows. A row longer than the budget
    is a batch of its own.
    """
    companies: dict[Hashable, list[RowT]] = {}
    for row in rows:
        companies.setdefault(row.company, []).append(row)
    batches: list[list[RowT]] = []
    for company in companies.values():
        batch: list[RowT] = []
        for row in sorted(company, key=len):
            # Rows come in rising length, so that the newest is the longest and sets what all are padded to.
            if batch and (len(batch) + 1) * len(row) > budget:
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
    return batches
