"""Which rows run together, decided in plain Python.

A row costs its padded length: a batch of like lengths wastes little, and one of mixed lengths can be slower than its
texts one by one.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol, TypeVar


class HasLength(Protocol):
    def __len__(self) -> int:
        """Tokens of the row."""


RowT = TypeVar("RowT", bound=HasLength)


def take_fair_share(waiting: Sequence[deque[RowT]], tokens: int) -> list[RowT]:
    """Take rows out of the callers' queues, one from each in turn, until they hold `tokens` tokens or none is left.

    So a caller with few rows is through after one round, however many rows another has.
    """
    taken: list[RowT] = []
    held = 0
    queues = deque(queue for queue in waiting if queue)
    while queues and held < tokens:
        queue = queues.popleft()
        taken.append(queue.popleft())
        held += len(taken[-1])
        if queue:
            queues.append(queue)
    return taken


def plan_batches(rows: Sequence[RowT], token_budget: int) -> list[list[RowT]]:
    """Cut `rows`, sorted by length, into batches of at most `token_budget` padded tokens (rows · longest).

    Every row is in exactly one batch. A row longer than the budget is a batch of its own.
    """
    batches: list[list[RowT]] = []
    for row in sorted(rows, key=len):
        # Rows come in rising length, so that the newest is the longest and sets what all are padded to.
        if batches and (len(batches[-1]) + 1) * len(row) <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
