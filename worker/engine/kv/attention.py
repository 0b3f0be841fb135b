"""Attention over KV slots, registered with transformers, so that any model that uses its interface serves unchanged.

Each row of a step attends to its own sequence's slot and to nothing else. `over_slots` says what the step's layout is
while a forward runs: not a keyword argument, since some models (StableLM, Nemotron) hand none to their attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker.engine.kv.layout import ChunkRows, DecodeRows, SlotStep, first_seen
from worker.engine.kv.slots import KVSlots
from worker.engine.kv.token_major import TokenMajorSlots
from worker.engine.kv.varlen_attention import attend

IMPLEMENTATION = "tandem_slots"
"""The name under which transformers knows this attention."""

UNKNOWN_OPTIONS = ("position_bias", "indices", "block_indices", "sinks")
"""Options by which models of transformers 5.23 change attention's result in ways that slots do not implement: biases
that are added, and choices of single keys or blocks."""


_step_of_thread: ContextVar[SlotStep | None] = ContextVar("slot_step", default=None)


@contextmanager
def over_slots(step: SlotStep) -> Iterator[None]:
    """For the forward inside, in this thread, rows stand in slots as `step` says."""
    token = _step_of_thread.set(step)
    try:
        yield
    finally:
        _step_of_thread.reset(token)


@dataclass(frozen=True)
class ScoreRules:
    """What becomes of the product of a query and a key before it weighs a value."""

    scale: float
    softcap: float | None
    """Scores are squeezed into -softcap..softcap by a tanh (Gemma 2, arXiv:2408.00118)."""
    sinks: torch.Tensor | None
    """[heads, query heads of a head]: scores that take part in the softmax and weigh no value (gpt-oss;
    arXiv:2309.17453)."""

    @property
    def is_plain(self) -> bool:
        """Whether products are scaled only, as fused kernels do it."""
        return self.softcap is None and self.sinks is None


def slot_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Store the step's keys and values, and attend.

    `query` has shape [1, query heads, rows, head_dim]; `key` and `value` [1, heads, rows, head_dim]; the result
    [1, rows, query heads, head_dim]. `sliding_window`, `softcap` and `s_aux` are the interface's names for a
    window, capped scores and sinks. Raises RuntimeError outside an engine's step, and for a layer whose attention
    slots do not know.
    """
    slot_step = _step_of_thread.get()
    if slot_step is None:
        raise RuntimeError("a model held by an engine runs through the engine only; use a twin for anything else")
    kv = slot_step.kv
    refuse_unknown(module, attention_mask, options)
    shape, own_shape = (kv.shape.heads, kv.shape.head_dim), (key.shape[1], key.shape[3])
    if own_shape != shape or value.shape != key.shape:
        raise RuntimeError(f"the slots hold {shape} heads and values a token; this layer's keys have {own_shape}")
    layer = module.layer_idx
    assert isinstance(layer, int)
    rules = ScoreRules(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        sinks=None if s_aux is None else s_aux.view(kv.shape.heads, -1),
    )
    if slot_step.varlen is not None and rules.is_plain:
        assert isinstance(kv, TokenMajorSlots)
        attended = attend(
            kv, layer, slot_step.varlen, query[0], key[0], value[0], window=sliding_window, scale=rules.scale
        )
        return attended.unsqueeze(0), None
    if slot_step.decode is None and not slot_step.chunks:
        raise RuntimeError("capped scores and sinks are not for a recorded step")
    output = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    if slot_step.decode is not None:
        rows = slice(slot_step.decode_rows)
        decoding = query[0, :, rows], key[0, :, rows], value[0, :, rows]
        _decode(kv, layer, slot_step.decode, *decoding, sliding_window, rules, output[rows])
    for chunk in slot_step.chunks:
        own = slice(chunk.first, chunk.end)
        kv.write_chunk(layer, chunk.slot, chunk.start, key[0, :, own], value[0, :, own])
        output[own] = _prefill(
            kv, layer, chunk, query[:, :, own], key[:, :, own], value[:, :, own], sliding_window, rules
        )
    return output.unsqueeze(0), None


def refuse_unknown(module: nn.Module, attention_mask: object, options: dict[str, object]) -> None:
    """Raise RuntimeError where a layer asks for attention that slots do not implement."""
    for name in UNKNOWN_OPTIONS:
        if options.get(name) is not None:
            raise RuntimeError(f"attention over slots does not implement {name}")
    asked = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if asked is None else asked):
        raise RuntimeError("attention over slots is causal, and this layer's is not")
    # transformers builds no mask for this implementation (it has no mask function), so a mask is the model's own.
    if attention_mask is not None:
        raise RuntimeError("attention over slots does not implement a mask that the model makes")


def _decode(
    kv: KVSlots,
    layer: int,
    rows: DecodeRows,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    rules: ScoreRules,
    out: torch.Tensor,
) -> None:
    """Store one token of each of n sequences, and attend, into `out` [n, query heads, head_dim].

    `query` has shape [query heads, n, head_dim]; `key` and `value` [heads, n, head_dim].
    """
    is_known = rules.is_plain and kv.dtype == query.dtype == key.dtype == value.dtype
    if kv.row_attention is None or not is_known:
        kv.write_rows(layer, rows.slots, rows.positions, key, value)
        out[:] = _decode_by_products(kv, layer, rows, query, window, rules)
        return
    kv.row_attention(
        (kv.keys[layer], kv.values[layer]),
        rows.slots,
        rows.positions,
        query,
        key,
        value,
        window=window,
        scale=rules.scale,
        used=rows.used,
        out=out,
    )


def _decode_by_products(
    kv: KVSlots, layer: int, rows: DecodeRows, query: torch.Tensor, window: int | None, rules: ScoreRules
) -> torch.Tensor:
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
    seen = rows.seen(window, kv)
    stored, read = slice(rows.first_slot, rows.end_slot), slice(seen.first, rows.used)
    keys = kv.keys[layer][stored].flatten(0, 1)[:, read]
    values = kv.values[layer][stored].flatten(0, 1)[:, read]
    weights = _weights(by_slot, keys, seen.mask, rules).to(kv.dtype)
    attended = torch.bmm(weights, values).view(span, query_heads, head_dim)
    if not rows.is_dense:
        attended = attended[rows.slots - rows.first_slot]
    return attended.view(count, query_heads, head_dim).to(query.dtype)


def _prefill(
    kv: KVSlots,
    layer: int,
    chunk: ChunkRows,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    rules: ScoreRules,
) -> torch.Tensor:
    """A chunk against itself and what its slot holds before it.

    `query` has shape [1, query heads, n, head_dim], `key` and `value` [1, heads, n, head_dim]; the result
    [n, query heads, head_dim].
    """
    if not rules.is_plain:
        return _prefill_by_rules(kv, layer, chunk, query[0], window, rules)
    grouped = query.shape[1] != key.shape[1]
    if chunk.is_causal(window):
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=rules.scale, enable_gqa=grouped
        )
    else:
        read = slice(first_seen(chunk.start, window), chunk.stop)
        attended = F.scaled_dot_product_attention(
            query,
            kv.keys[layer][chunk.slot, None, :, read].to(query.dtype),
            kv.values[layer][chunk.slot, None, :, read].to(query.dtype),
            attn_mask=chunk.visible(window, query.device),
            scale=rules.scale,
            enable_gqa=grouped,
        )
    return attended[0].transpose(0, 1)


def _prefill_by_rules(
    kv: KVSlots, layer: int, chunk: ChunkRows, query: torch.Tensor, window: int | None, rules: ScoreRules
) -> torch.Tensor:
    """A chunk against its slot with scores that no fused kernel makes.

    `query` has shape [query heads, n, head_dim]; the result [n, query heads, head_dim].
    """
    query_heads, length, head_dim = query.shape
    group = query_heads // kv.shape.heads
    read = slice(first_seen(chunk.start, window), chunk.stop)
    hidden = ~chunk.visible(window, query.device)
    mask = torch.zeros(hidden.shape, dtype=kv.dtype, device=query.device).masked_fill_(hidden, float("-inf"))
    by_head = query.to(kv.dtype).reshape(kv.shape.heads, group * length, head_dim)
    weights = _weights(by_head, kv.keys[layer][chunk.slot, :, read], mask.repeat(group, 1), rules).to(kv.dtype)
    attended = torch.bmm(weights, kv.values[layer][chunk.slot, :, read])
    return attended.view(query_heads, length, head_dim).transpose(0, 1).to(query.dtype)


def _weights(query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, rules: ScoreRules) -> torch.Tensor:
    """[sequences * heads, queries, keys], fp32: what each query gives to each key.

    `query` has shape [sequences * heads, queries, head_dim], where the queries are those of a head's group, each
    with its rows; `keys` [sequences * heads, keys, head_dim]. `mask` is added, and broadcast to the result.
    """
    if rules.is_plain:
        scores = torch.baddbmm(mask, query, keys.transpose(1, 2), alpha=rules.scale)
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    scores = torch.bmm(query, keys.transpose(1, 2)).mul_(rules.scale)
    if rules.softcap is not None:
        scores.div_(rules.softcap).tanh_().mul_(rules.softcap)
    scores += mask
    if rules.sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    return _softmax_with_sinks(scores, rules.sinks)


def _softmax_with_sinks(scores: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Softmax over [sequences * heads, queries, keys] and one more score of each query, which is then dropped.

    `sinks` has shape [heads, query heads of a head].
    """
    heads, group = sinks.shape
    count, queries, _ = scores.shape
    of_each = sinks.repeat_interleave(queries // group, dim=1).repeat(count // heads, 1)
    joined = torch.cat([scores, of_each[..., None].to(scores.dtype)], dim=-1)
    return torch.softmax(joined, dim=-1, dtype=torch.float32)[..., :-1]


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, slot_attention)
