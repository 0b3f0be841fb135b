"""The keys and values of every running sequence, in slots allocated once."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KVShape:
    """What one token's keys and values look like in a model."""

    layers: int
    heads: int
    """Key/value heads; with grouped queries fewer than the query heads."""
    head_dim: int


class KVSlots:
    """For each layer, keys and values of shape [slots, heads, slot_tokens, head_dim]."""

    def __init__(
        self, shape: KVShape, *, slots: int, slot_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocates all memory now, so that a running batch can never run out of it."""
        self.shape = shape
        self.slots = slots
        self.slot_tokens = slot_tokens
        self.dtype = dtype
        self.device = device
        size = (slots, shape.heads, slot_tokens, shape.head_dim)
        # Zeros, not empty memory: rows beyond a sequence's end are multiplied by a probability of 0, and 0 * NaN
        # is NaN.
        self.keys = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]

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

    def clear(self, slot: int) -> None:
        """Zero a slot whose sequence did not end well: it may hold values that are not finite."""
        for stored in (*self.keys, *self.values):
            stored[slot].zero_()
