"""Several rows in one, so that no padding is computed: which go together, and what comes of them."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain
from typing import overload

from worker.training.data import Example


def packs(lengths: Sequence[int], capacity: int) -> list[tuple[int, ...]]:
    """The numbers of the rows that go into each pack, of at most `capacity` tokens; each row is in one.

    Best fit, the longest row first: it goes where it leaves the least room. A row that is longer than `capacity` is
    a pack of its own. The packs are in the order of their first rows, so the same lengths give the same packs.
    """
    plan: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # room left and the pack's number, in ascending order
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        place = bisect_left(rooms, (lengths[row], -1))
        if place == len(rooms):
            plan.append([row])
            number, room = len(plan) - 1, capacity - lengths[row]
        else:
            room, number = rooms.pop(place)
            plan[number].append(row)
            room -= lengths[row]
        if room > 0:
            insort(rooms, (room, number))
    return sorted(tuple(sorted(pack)) for pack in plan)


class PackedExamples(Sequence[Example]):
    """Examples put together by a plan, each made when it is asked for.

    A text's first token carries no label, so that nothing is learned across the borders.
    """

    def __init__(self, examples: Sequence[Example], plan: Sequence[tuple[int, ...]]) -> None:
        self._examples = examples
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        rows = [self._examples[row] for row in self._plan[index]]
        return Example(
            tuple(chain.from_iterable(row.input_ids for row in rows)),
            tuple(chain.from_iterable(row.labels for row in rows)),
            lengths=tuple(len(row.input_ids) for row in rows),
        )
