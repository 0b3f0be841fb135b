"""The keys and values of every running sequence, in slots allocated once."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from worker.engine.kernels.choice import RowAttention


@dataclass(frozen=True)
class KVShape:
    """What one token's keys and values look like in a model."""

    layers: int
    heads: int
    """Key/value heads; with grouped queries fewer than the query heads."""
    head_dim: int

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.layers * self.heads * self.head_dim * dtype.itemsize


def kv_dtype(model: PreTrainedModel, row_attention: RowAttention | None = None) -> torch.dtype:
    """What the slots of a model hold: its own dtype on a GPU, and on a CPU where a kernel reads them. torch's own
    products are faster there over fp32 than over bf16 (measured)."""
    return torch.float32 if model.device.type == "cpu" and row_attention is None else model.dtype


def fit_slots(slots: int, slot_tokens: int, *, token_bytes: int, budget_bytes: int) -> tuple[int, int]:
    """As many slots, up to `slots`, as the budget holds; where it does not hold one, one shorter slot.

    Returns slots and tokens of each; no tokens where the budget holds none.
    """
    fitting = budget_bytes // (slot_tokens * token_bytes)
    if fitting >= 1:
        return min(slots, fitting), slot_tokens
    return 1, budget_bytes // token_bytes


@dataclass(frozen=True)
class ParkedKV:
    """The keys and values of a sequence that gave its slot to a more urgent one, in host memory."""

    keys: tuple[torch.Tensor, ...]
    """For each layer [heads, tokens, head_dim]."""
    values: tuple[torch.Tensor, ...]

    @property
    def tokens(self) -> int:
        return self.keys[0].shape[1]


class KVSlots:
    """For each layer, keys and values of shape [slots, heads, slot_tokens, head_dim]."""

    def __init__(
        self,
        shape: KVShape,
        *,
        slots: int,
        slot_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        row_attention: RowAttention | None = None,
    ) -> None:
        """Allocates all memory now, so that a running batch can never run out of it.

        `row_attention` is the kernel that decodes over them; None: torch's products do.
        """
        self.shape = shape
        self.row_attention = row_attention
        self.slots = slots
        self.slot_tokens = slot_tokens
        self.dtype = dtype
        self.device = device
        size = (slots, shape.heads, slot_tokens, shape.head_dim)
        # Zeros, not empty memory: rows beyond a sequence's end are multiplied by a probability of 0, and 0 * NaN
        # is NaN.
        self.keys = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]

    @property
    def bytes(self) -> int:
        """Memory of all slots. A CPU's operating system gives it page by page, as it is written to."""
        return self.slots * self.slot_tokens * self.shape.token_bytes(self.dtype)

    def write_rows(
        self,
        layer: int,
        slots: torch.Tensor,
        positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Write one token of each of n sequences.

        `slots` and `positions` have shape [n]; `keys` and `values` [heads, n, head_dim].
        """
        self.keys[layer][slots, :, positions] = keys.transpose(0, 1).to(self.dtype)
        self.values[layer][slots, :, positions] = values.transpose(0, 1).to(self.dtype)

    def write_chunk(self, layer: int, slot: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write consecutive tokens of one sequence; `keys` and `values` have shape [heads, n, head_dim]."""
        end = start + keys.shape[1]
        self.keys[layer][slot, :, start:end] = keys
        self.values[layer][slot, :, start:end] = values

    def park(self, slot: int, tokens: int) -> ParkedKV:
        """Copy a slot's first `tokens` positions to the host."""
        return ParkedKV(
            keys=tuple(stored[slot, :, :tokens].to("cpu", copy=True) for stored in self.keys),
            values=tuple(stored[slot, :, :tokens].to("cpu", copy=True) for stored in self.values),
        )

    def restore(self, slot: int, parked: ParkedKV) -> None:
        """Put parked keys and values into a slot, bit for bit."""
        for layer, (keys, values) in enumerate(zip(parked.keys, parked.values, strict=True)):
            self.write_chunk(layer, slot, 0, keys, values)

    def copy_beginning(self, source: int, slot: int, tokens: int) -> None:
        """Copy the first `tokens` positions of one slot into another."""
        for stored in (*self.keys, *self.values):
            stored[slot, :, :tokens] = stored[source, :, :tokens]

    def write_prefix(self, slot: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write a trained prefix as a slot's first positions; both have shape [layers, heads, tokens, head_dim]."""
        for layer in range(self.shape.layers):
            self.write_chunk(layer, slot, 0, keys[layer], values[layer])

    def clear(self, slot: int) -> None:
        """Zero a slot whose sequence did not end well: it may hold values that are not finite."""
        for stored in (*self.keys, *self.values):
            stored[slot].zero_()
