"""One linear layer's adapter slots as tensors, which every row of a step looks into by its slot."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

Ranks = tuple[tuple[int, int], ...]
"""Slots with their ranks, in the order in which they stand side by side."""


@dataclass(frozen=True)
class JoinedPairs:
    """The pairs of some slots side by side, without the rows that lower ranks leave over."""

    a: torch.Tensor
    """[ranks of all, inputs]"""
    b: torch.Tensor
    """[ranks of all, outputs]"""
    ranks: Ranks


class PairTable:
    """The A and B of every adapter slot, as two matrices.

    `rank` consecutive rows belong to a slot; those that an adapter of lower rank leaves over are zero, and so are
    all of a slot whose adapter has no pair for this layer.
    """

    def __init__(
        self, *, slots: int, rank: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.a = torch.zeros(slots * rank, inputs, dtype=dtype, device=device)
        self.b = torch.zeros(slots * rank, outputs, dtype=dtype, device=device)
        self.rank = rank
        self.ranks: dict[int, int] = {}
        """The rank of each slot that has a pair."""
        self.rank_of_slot = torch.zeros(slots, dtype=torch.int64)
        """The same for kernels: [slots], 0 without a pair."""
        self.largest = 0
        """Of the ranks."""
        self._joined: JoinedPairs | None = None
        """Of the slots that were asked for last: a step's adapters are mostly those of the step before."""

    @property
    def bytes(self) -> int:
        """Of all slots, filled or not, and of the copies of those that were joined last."""
        joined = self._joined
        return self.a.nbytes + self.b.nbytes + (0 if joined is None else joined.a.nbytes + joined.b.nbytes)

    def put(self, slot: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """Copy a pair, [rank, inputs] and [rank, outputs], in place of what was there."""
        first, end = slot * self.rank, slot * self.rank + len(a)
        self.a[first:end].copy_(a, non_blocking=True)
        self.b[first:end].copy_(b, non_blocking=True)
        self._zero(end, first + self.ranks.get(slot, 0))
        self.ranks[slot] = len(a)
        self.rank_of_slot[slot] = len(a)
        self.largest = max(self.ranks.values())
        self._joined = None

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        first = slot * self.rank
        self._zero(first, first + self.ranks.pop(slot, 0))
        self.rank_of_slot[slot] = 0
        self.largest = max(self.ranks.values(), default=0)
        self._joined = None

    def own(self, slot: int) -> slice:
        """The rows of a slot that has a pair."""
        return slice(slot * self.rank, slot * self.rank + self.ranks[slot])

    def joined(self, slots: Collection[int]) -> JoinedPairs:
        """The pairs of these slots; they are copied together when the slots are others than the last time."""
        ranks = tuple((slot, self.ranks[slot]) for slot in sorted(slots))
        if self._joined is None or self._joined.ranks != ranks:
            rows = [self.own(slot) for slot, _ in ranks]
            self._joined = JoinedPairs(
                torch.cat([self.a[own] for own in rows]), torch.cat([self.b[own] for own in rows]), ranks
            )
        return self._joined

    def whole(self) -> JoinedPairs:
        """All slots, those included that hold nothing now: the same tensors, whatever is put into them."""
        slots = range(len(self.a) // self.rank)
        return JoinedPairs(self.a, self.b, tuple((slot, self.rank) for slot in slots))

    def _zero(self, first: int, end: int) -> None:
        if first < end:
            self.a[first:end].zero_()
            self.b[first:end].zero_()


class ScaleTable:
    """A factor for each feature by adapter slot, and what is added after it."""

    def __init__(self, *, slots: int, features: int, device: torch.device) -> None:
        # The last row is the base's: `BASE` is -1. A factor of 1 and a shift of 0 leave a row bit for bit as it is.
        self._factors = torch.ones(slots + 1, features, device=device)
        self._shifts: torch.Tensor | None = None
        """[slots + 1, features]; None until a scale brings one, which in a layer without a bias none does."""
        self.filled: set[int] = set()
        """The slots that have a scale."""

    @property
    def bytes(self) -> int:
        """Of all slots, filled or not."""
        return self._factors.nbytes + (0 if self._shifts is None else self._shifts.nbytes)

    def put(self, slot: int, factors: torch.Tensor, shifts: torch.Tensor | None) -> None:
        """Copy a scale, [features] each, in place of what was there."""
        self._factors[slot].copy_(factors, non_blocking=True)
        if shifts is not None:
            if self._shifts is None:
                self._shifts = torch.zeros_like(self._factors)
            self._shifts[slot].copy_(shifts, non_blocking=True)
        elif self._shifts is not None:
            self._shifts[slot].zero_()
        self.filled.add(slot)

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        if slot in self.filled:
            self.filled.remove(slot)
            self._factors[slot].fill_(1)
            if self._shifts is not None:
                self._shifts[slot].zero_()

    def scaled(self, rows: torch.Tensor, slots: torch.Tensor | int) -> torch.Tensor:
        """`rows` [n, features], each by its slot of `slots` [n], or all by one; computed in float32."""
        factors = self._factors[slots]
        result = rows * factors if self._shifts is None else torch.addcmul(self._shifts[slots], rows, factors)
        return result.to(rows.dtype)
