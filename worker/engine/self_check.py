"""Whether a model computes over slots what it computes by itself: asked of it before the engine takes it over.

The static reasons of `support` know the configs that we have read. This knows none: it runs the model both ways on a
few random tokens and compares the logits, so that a family whose attention has something of its own is not served
wrongly. What only shows in longer texts (a window, positions that are scaled) it cannot see: that is `support`'s.
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from worker.engine.kernels.choice import RowAttention
from worker.engine.kv.attention import IMPLEMENTATION, over_slots
from worker.engine.kv.layout import ChunkRows, SlotStep, decode_rows
from worker.engine.kv.slots import KVSlots, kv_dtype
from worker.engine.support import kv_shape

TOKENS = 12
"""Tokens of each of the two sequences: enough for two chunks and a decoded token, and cheap."""

CHUNK = 7
"""Tokens of the first sequence's first chunk: its second one attends to what the slot holds."""

SLOTS = (0, 2)
"""The sequences' slots. The one between them is idle, so that the decoding rows are not dense."""

SINGLE_TOLERANCE = 1e-3
HALF_TOLERANCE = 0.2
"""Tolerated `relative_difference` in fp32, and in dtypes of 16 bits."""


@torch.inference_mode()
def self_check(model: PreTrainedModel) -> str | None:
    """Why the engine must not hold the model, in a plain sentence; None when both ways agree.

    For a model in eval mode that has no static reason (`support.unsupported_reason`). It is left as it was.
    """
    name = type(model).__name__
    tokens = _tokens(model)
    before = model.config._attn_implementation
    try:
        alone = model(input_ids=tokens, use_cache=False).logits
        model.set_attn_implementation(IMPLEMENTATION)
        over_slots = _over_slots(model, tokens)
    except Exception as error:  # whatever a model raises on the way, it cannot be held, and the sentence says why
        return f"{name} does not run over slots: {error}"
    finally:
        model.set_attn_implementation(before)
    difference = relative_difference(over_slots, alone)
    tolerance = HALF_TOLERANCE if model.dtype.itemsize == 2 else SINGLE_TOLERANCE
    if not difference <= tolerance:  # NaN is no agreement
        return f"{name} computes other logits over slots than by itself: {difference:.2g} of their spread away"
    return None


@torch.inference_mode()
def changed_logits(
    model: PreTrainedModel, change: Callable[[], object], row_attention: RowAttention | None
) -> str | None:
    """Why a change must be undone: the model computes other logits after it; None when they agree.

    For a model that an engine has taken over; with `row_attention`, its slots decode by it after the change.
    """
    tokens = _tokens(model)
    before = _over_slots(model, tokens)
    try:
        change()
        difference = relative_difference(_over_slots(model, tokens, row_attention), before)
    except Exception as error:  # whatever the change leads to, the model ran without it
        return f"it fails: {error}"
    tolerance = HALF_TOLERANCE if model.dtype.itemsize == 2 else SINGLE_TOLERANCE
    if not difference <= tolerance:  # NaN is no agreement
        return f"other logits: {difference:.2g} of their spread away"
    return None


def relative_difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """How far logits are from those expected, in standard deviations of the latter; NaN where one is not finite.

    Both have shape [2, TOKENS, vocabulary]. For each way of computing a row (first chunk, second chunk, whole prompt,
    decoded) the median over its rows counts, and the worst of them is the result: rounding may send a single token
    to another expert of a mixture, where an attention that is wrong is so in each row.
    """
    expected = expected.float()
    by_row = (logits.float() - expected).square().mean(dim=-1).sqrt() / expected.std(dim=-1)
    last = TOKENS - 1
    ways = (by_row[0, :CHUNK], by_row[0, CHUNK:last], by_row[1, :last], by_row[:, last])
    return max(float(rows.median()) for rows in ways) if bool(by_row.isfinite().all()) else float("nan")


def _tokens(model: PreTrainedModel) -> torch.Tensor:
    """[2, TOKENS]: the same random tokens for the same vocabulary, whatever random numbers were drawn before."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (len(SLOTS), TOKENS), generator=random)
    return tokens.to(model.device)


def _over_slots(
    model: PreTrainedModel, tokens: torch.Tensor, row_attention: RowAttention | None = None
) -> torch.Tensor:
    """[2, TOKENS, vocabulary]: both sequences' logits, computed in three steps."""
    kv = KVSlots(
        kv_shape(model.config),
        slots=max(SLOTS) + 1,
        slot_tokens=TOKENS,
        dtype=kv_dtype(model, row_attention),  # as the engine does
        device=model.device,
        row_attention=row_attention,
    )
    first, second = tokens
    last, rest = TOKENS - 1, TOKENS - 1 - CHUNK
    began = _step(model, SlotStep(kv, None, (ChunkRows(SLOTS[0], 0, 0, CHUNK),)), first[:CHUNK], [*range(CHUNK)])
    both = _step(
        model,
        SlotStep(kv, None, (ChunkRows(SLOTS[0], CHUNK, 0, rest), ChunkRows(SLOTS[1], 0, rest, rest + last))),
        torch.cat([first[CHUNK:last], second[:last]]),
        [*range(CHUNK, last), *range(last)],
    )
    decoded = _step(model, SlotStep(kv, decode_rows(kv, [*SLOTS], [last, last]), ()), tokens[:, last], [last, last])
    return torch.stack([torch.cat([began, both[:rest], decoded[:1]]), torch.cat([both[rest:], decoded[1:]])])


def _step(model: PreTrainedModel, step: SlotStep, tokens: torch.Tensor, positions: list[int]) -> torch.Tensor:
    """[rows, vocabulary]"""
    position_ids = torch.tensor([positions], device=tokens.device)
    with over_slots(step):
        output = model(input_ids=tokens[None], position_ids=position_ids, use_cache=False)
    logits: torch.Tensor = output.logits[0]
    return logits
