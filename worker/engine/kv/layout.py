"""The layout of one forward: which of its rows belong to which slot, and what each of them sees."""

from dataclasses import dataclass, field

import torch

from worker.engine.kv.slots import KVSlots
from worker.engine.kv.token_major import TokenMajorSlots
from worker.engine.kv.varlen_attention import VarlenRows, varlen_rows


def first_seen(position: int, window: int | None) -> int:
    """The first position that the token at `position` sees in a layer whose tokens see `window` tokens, their own
    included; None: all before them. A slot keeps the whole sequence either way: only what is read of it narrows.
    """
    return 0 if window is None else max(0, position - window + 1)


@dataclass(frozen=True)
class SeenSpan:
    """What the decoding rows see in the layers of one window."""

    first: int
    """No position before it is read."""
    mask: torch.Tensor
    """[slots of the span * heads, 1, used - first]: 0 where a row may look, -inf elsewhere."""


@dataclass(frozen=True)
class DecodeRows:
    """The forward's first rows: one token of each decoding sequence, in the order of their slots."""

    slots: torch.Tensor
    """[n], int64, ascending."""
    positions: torch.Tensor
    """[n], int64: where each row's token stands in its sequence."""
    first_slot: int
    end_slot: int
    """The rows' slots lie in first_slot:end_slot. The whole span is computed, as one view without a copy; slots
    in it that do not decode are computed in vain, which costs less than gathering the others."""
    last_seen: tuple[int, ...]
    """For each slot of the span, the position of its token. A slot that does not decode looks where the longest
    sequence does: its output is dropped, and nothing more is read for it."""
    used: int
    """Tokens of the longest decoding sequence: no more of the slots is read."""
    spans: dict[int | None, SeenSpan] = field(default_factory=dict)
    """Made by `seen`, once a step for each window among the layers."""

    @property
    def is_dense(self) -> bool:
        """Whether every slot of the span decodes."""
        return len(self.slots) == self.end_slot - self.first_slot

    def seen(self, window: int | None, kv: KVSlots) -> SeenSpan:
        """What the rows see in the layers of this window."""
        if window not in self.spans:
            self.spans[window] = self._span(window, kv)
        return self.spans[window]

    def _span(self, window: int | None, kv: KVSlots) -> SeenSpan:
        firsts = [first_seen(position, window) for position in self.last_seen]
        first = min(firsts)
        positions = torch.arange(first, self.used)
        hidden = positions > torch.tensor(self.last_seen)[:, None]
        if max(firsts) > first:
            hidden |= positions < torch.tensor(firsts)[:, None]
        mask = torch.zeros(hidden.shape, dtype=kv.dtype).masked_fill_(hidden, float("-inf"))
        return SeenSpan(
            first, mask.to(kv.device, non_blocking=True).repeat_interleave(kv.shape.heads, dim=0)[:, None, :]
        )


@dataclass(frozen=True)
class ChunkRows:
    """Rows `first:end` of the forward: consecutive prompt tokens of one sequence, the first at position `start`."""

    slot: int
    start: int
    first: int
    end: int
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)
    """Made by `visible`, once a step for each window among the layers."""

    @property
    def stop(self) -> int:
        """The position after the chunk's last: as many tokens of the sequence are known then."""
        return self.start + self.end - self.first

    def is_causal(self, window: int | None) -> bool:
        """Whether the chunk's tokens see all of the chunk up to themselves, and nothing else."""
        return self.start == 0 and first_seen(self.stop - 1, window) == 0

    def visible(self, window: int | None, device: torch.device) -> torch.Tensor:
        """[rows, keys], bool: True where a token may look. The keys are those from the first that any token sees."""
        if window not in self.masks:
            firsts = [first_seen(position, window) for position in range(self.start, self.stop)]
            keys = torch.arange(firsts[0], self.stop)
            seen = keys <= torch.arange(self.start, self.stop)[:, None]
            if firsts[-1] > firsts[0]:
                seen &= keys >= torch.tensor(firsts)[:, None]
            self.masks[window] = seen.to(device, non_blocking=True)
        return self.masks[window]


@dataclass(frozen=True)
class SlotStep:
    """The layout of one forward."""

    kv: KVSlots
    decode: DecodeRows | None
    chunks: tuple[ChunkRows, ...]
    varlen: VarlenRows | None = None
    """All rows as flash attention takes them, where it is used; a recorded step has nothing else."""

    @property
    def decode_rows(self) -> int:
        """How many of the forward's rows decode."""
        return 0 if self.decode is None else len(self.decode.slots)


def decode_rows(kv: KVSlots, slots: list[int], positions: list[int]) -> DecodeRows:
    """The layout of the decoding rows, whose slots must be ascending and not empty."""
    first, end = slots[0], slots[-1] + 1
    used = max(positions) + 1
    last_seen = [used - 1] * (end - first)
    for slot, position in zip(slots, positions, strict=True):
        last_seen[slot - first] = position
    return DecodeRows(
        slots=torch.tensor(slots).to(kv.device, non_blocking=True),
        positions=torch.tensor(positions).to(kv.device, non_blocking=True),
        first_slot=first,
        end_slot=end,
        last_seen=tuple(last_seen),
        used=used,
    )


def slot_step(kv: KVSlots, slots: list[int], positions: list[int], chunks: tuple[ChunkRows, ...]) -> SlotStep:
    """The layout of a forward: decoding rows, whose slots must be ascending, and chunks behind them."""
    decode = decode_rows(kv, slots, positions) if slots else None
    varlen = varlen_rows(kv, slots, positions, chunks) if isinstance(kv, TokenMajorSlots) else None
    return SlotStep(kv, decode, chunks, varlen)
