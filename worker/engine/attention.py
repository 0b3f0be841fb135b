"""Attention over KV slots, registered with transformers, so that any model that uses its interface serves unchanged.

One flattened forward holds one row for each decoding sequence and then chunks of prompts. Each row attends to its
own sequence's slot and to nothing else. The step's layout reaches `slot_attention` as the keyword argument
`slot_step`, which transformers' models hand through to their attention.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker.engine.kv_slots import KVSlots

IMPLEMENTATION = "tandem_slots"
"""The name under which transformers knows this attention."""


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
    used: int
    """Tokens of the longest decoding sequence: no more of the slots is read."""
    mask: torch.Tensor
    """[span * heads, 1, used]: 0 where a row may look, -inf elsewhere."""

    @property
    def is_dense(self) -> bool:
        """Whether every slot of the span decodes."""
        return len(self.slots) == self.end_slot - self.first_slot


@dataclass(frozen=True)
class ChunkRows:
    """Rows `first:end` of the forward: consecutive prompt tokens of one sequence, the first at position `start`."""

    slot: int
    start: int
    first: int
    end: int


@dataclass(frozen=True)
class SlotStep:
    """The layout of one forward."""

    kv: KVSlots
    decode: DecodeRows | None
    chunks: tuple[ChunkRows, ...]

    @property
    def decode_rows(self) -> int:
        """How many of the forward's rows decode."""
        return 0 if self.decode is None else len(self.decode.slots)


def decode_rows(kv: KVSlots, slots: list[int], positions: list[int]) -> DecodeRows:
    """The layout of the decoding rows, whose slots must be ascending and not empty."""
    first, end, used = slots[0], slots[-1] + 1, max(positions) + 1
    # A slot of the span that does not decode looks at its first token only: its output is dropped, but a row of
    # -inf alone would be NaN.
    last_seen = torch.zeros(end - first, dtype=torch.int64)
    last_seen[torch.tensor(slots) - first] = torch.tensor(positions)
    hidden = torch.arange(used) > last_seen[:, None]
    mask = torch.zeros(end - first, used, dtype=kv.dtype).masked_fill_(hidden, float("-inf"))
    return DecodeRows(
        slots=torch.tensor(slots, device=kv.device),
        positions=torch.tensor(positions, device=kv.device),
        first_slot=first,
        end_slot=end,
        used=used,
        mask=mask.to(kv.device).repeat_interleave(kv.shape.heads, dim=0)[:, None, :],
    )


def slot_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the interface's; always None for this implementation
    *,
    scaling: float | None = None,
    slot_step: SlotStep | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Store the step's keys and values, and attend.

    `query` has shape [1, query heads, rows, head_dim]; `key` and `value` [1, heads, rows, head_dim]; the result
    [1, rows, query heads, head_dim]. Raises RuntimeError outside an engine's step and for options that change
    attention in a way that slots do not know.
    """
    if slot_step is None:
        raise RuntimeError("a model held by an engine runs through the engine only; use a twin for anything else")
    refuse_options(options)
    layer = module.layer_idx
    assert isinstance(layer, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    if slot_step.decode is not None:
        rows = slot_step.decode_rows
        slot_step.kv.write_rows(
            layer, slot_step.decode.slots, slot_step.decode.positions, key[0, :, :rows], value[0, :, :rows]
        )
        output[:rows] = _decode(slot_step.kv, layer, slot_step.decode, query[0, :, :rows], scale)
    for chunk in slot_step.chunks:
        rows_of_chunk = slice(chunk.first, chunk.end)
        slot_step.kv.write_chunk(layer, chunk.slot, chunk.start, key[0, :, rows_of_chunk], value[0, :, rows_of_chunk])
        output[rows_of_chunk] = _prefill(slot_step.kv, layer, chunk, query, key, value, scale)
    return output.unsqueeze(0), None


def refuse_options(options: dict[str, object]) -> None:
    """Raise RuntimeError for an option that changes attention's result and that slots do not implement."""
    for name in ("sliding_window", "softcap", "s_aux", "position_bias", "cache_position_bias"):
        if options.get(name) is not None:
            raise RuntimeError(f"attention over slots does not implement {name}")


def _decode(kv: KVSlots, layer: int, rows: DecodeRows, query: torch.Tensor, scale: float) -> torch.Tensor:
    """One token against its sequence's slot, for n sequences at once.

    `query` has shape [query heads, n, head_dim]; the result [n, query heads, head_dim]. Plain batched products
    over fp32 slots are 8 times as fast on CPU as bf16 scaled_dot_product_attention with grouped queries.
    """
    query_heads, count, head_dim = query.shape
    span, group = rows.end_slot - rows.first_slot, query_heads // kv.shape.heads
    by_row = query.transpose(0, 1).to(kv.dtype)
    if rows.is_dense:
        by_slot = by_row
    else:
        by_slot = by_row.new_zeros(span, query_heads, head_dim)
        by_slot[rows.slots - rows.first_slot] = by_row
    by_slot = by_slot.reshape(span * kv.shape.heads, group, head_dim)
    keys = _span(kv.keys[layer], rows)
    values = _span(kv.values[layer], rows)
    scores = torch.baddbmm(rows.mask, by_slot, keys.transpose(1, 2), alpha=scale)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(kv.dtype)
    attended = torch.bmm(weights, values).view(span, query_heads, head_dim)
    if not rows.is_dense:
        attended = attended[rows.slots - rows.first_slot]
    return attended.view(count, query_heads, head_dim).to(query.dtype)


def _span(stored: torch.Tensor, rows: DecodeRows) -> torch.Tensor:
    """[span * heads, used, head_dim]: a view of the slots that decode."""
    return stored[rows.first_slot : rows.end_slot].flatten(0, 1)[:, : rows.used]


def _prefill(
    kv: KVSlots,
    layer: int,
    chunk: ChunkRows,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """A chunk against itself and what its slot holds before it; the result has shape [n, query heads, head_dim]."""
    rows = slice(chunk.first, chunk.end)
    asked = query[:, :, rows]
    length = chunk.end - chunk.first
    grouped = query.shape[1] != key.shape[1]
    if chunk.start == 0:
        attended = F.scaled_dot_product_attention(
            asked, key[:, :, rows], value[:, :, rows], is_causal=True, scale=scale, enable_gqa=grouped
        )
    else:
        seen = chunk.start + length
        visible = torch.ones(length, seen, dtype=torch.bool, device=query.device).tril(chunk.start)
        attended = F.scaled_dot_product_attention(
            asked,
            kv.keys[layer][chunk.slot, None, :, :seen].to(query.dtype),
            kv.values[layer][chunk.slot, None, :, :seen].to(query.dtype),
            attn_mask=visible,
            scale=scale,
            enable_gqa=grouped,
        )
    return attended[0].transpose(0, 1)


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, slot_attention)
