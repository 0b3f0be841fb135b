"""Which slots a model gets: those that flash attention reads, where a trial of it succeeds, else the plain ones."""

import logging

import torch
from torch import nn
from transformers import PreTrainedModel

from worker.engine.kernels.choice import Kernels, RowAttention, kernels_for
from worker.engine.kv.attention import over_slots, slot_attention
from worker.engine.kv.layout import ChunkRows, slot_step
from worker.engine.kv.slots import KVShape, KVSlots, kv_dtype
from worker.engine.kv.token_major import TokenMajorSlots
from worker.engine.kv.varlen_attention import PAGE_TOKENS
from worker.engine.support import kv_shape

log = logging.getLogger(__name__)

KERNEL_DTYPES = (torch.bfloat16, torch.float16)
"""What flash attention computes with."""

TOLERANCE = 0.05
"""Largest difference from the plain attention that the trial accepts. Its values are about 1 and smaller, and both
paths round them, and the weights before them, to 16 bits (bfloat16: 0.4 %)."""

TRIAL_CHUNK = 40
"""Rows of the trial's second chunk: some, and no multiple of a kernel's tile."""
TRIAL_WINDOW = 23
"""Tokens that a row of the trial sees where the model has windows: fewer than the chunk has."""


def slots_for(
    model: PreTrainedModel, *, slots: int, slot_tokens: int, gpu_kernels: bool, kernels: Kernels | None = None
) -> KVSlots:
    """Slots of a model that is on its device: plain ones unless `gpu_kernels` are wanted, and there is a GPU.

    A reason against them that was found there is logged. On a CPU, `kernels` decode over the slots.
    """
    row_attention = row_attention_for(model, kernels)
    shape, dtype, device = kv_shape(model.config), kv_dtype(model, row_attention), model.device
    if device.type != "cuda" or not gpu_kernels:
        return KVSlots(
            shape, slots=slots, slot_tokens=slot_tokens, dtype=dtype, device=device, row_attention=row_attention
        )
    fault = _fault(model, shape, slot_tokens)
    if fault is None:
        return TokenMajorSlots(shape, slots=slots, slot_tokens=slot_tokens, dtype=dtype, device=device)
    log.warning("%s runs without flash attention and CUDA graphs: %s", type(model).__name__, fault)
    return KVSlots(shape, slots=slots, slot_tokens=slot_tokens, dtype=dtype, device=device)


def stored_dtype(model: PreTrainedModel, *, cpu_kernels: bool) -> torch.dtype:
    """What the slots of a model will hold, as `slots_for` chooses it."""
    return kv_dtype(model, row_attention_for(model, kernels_for(model) if cpu_kernels else None))


def row_attention_for(model: PreTrainedModel, kernels: Kernels | None) -> RowAttention | None:
    """The kernel that decodes over the model's slots; None where its attention is not the kernel's."""
    return None if kernels is None or _scores_fault(model) is not None else kernels.attend_rows


def _scores_fault(model: PreTrainedModel) -> str | None:
    """What its scores are, where they are not plain products."""
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        return "its attention caps scores"
    if any(getattr(module, "sinks", None) is not None for module in model.modules()):
        return "its attention has sinks"
    return None


def _fault(model: PreTrainedModel, shape: KVShape, slot_tokens: int) -> str | None:
    """Why flash attention cannot serve the model; None when it can."""
    if kv_dtype(model) not in KERNEL_DTYPES:
        return f"the kernel computes in 16 bits, the model in {kv_dtype(model)}"
    if slot_tokens % PAGE_TOKENS:
        return f"its slots have {slot_tokens} tokens, which is no multiple of {PAGE_TOKENS}"
    if (fault := _scores_fault(model)) is not None:
        return fault
    windows = [None] if getattr(model.config, "sliding_window", None) is None else [None, TRIAL_WINDOW]
    for window in windows:
        fault = trial_fault(shape, model.config.num_attention_heads, kv_dtype(model), model.device, window)
        if fault is not None:
            return fault
    return None


@torch.inference_mode()
def trial_fault(
    shape: KVShape, query_heads: int, dtype: torch.dtype, device: torch.device, window: int | None
) -> str | None:
    """Why flash attention cannot take the plain one's place on this device; None where both give the same.

    Two steps of one layer are computed both ways: a prompt longer than a tile of the kernel, then the rest of it
    beside a decoding sequence.
    """
    try:
        plain, fused = (
            _two_steps(kind, shape, query_heads, dtype, device, window) for kind in (KVSlots, TokenMajorSlots)
        )
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return f"torch {torch.__version__} does not run it here: {error}"
    difference = float((fused.float() - plain.float()).abs().max())
    if not difference <= TOLERANCE:  # NaN is no agreement
        return f"its results differ from those of the plain attention by {difference:.2g}"
    return None


def _two_steps(
    kind: type[KVSlots],
    shape: KVShape,
    query_heads: int,
    dtype: torch.dtype,
    device: torch.device,
    window: int | None,
) -> torch.Tensor:
    """[rows of both steps, query heads, head_dim], the same random numbers for both kinds."""
    one_layer = KVShape(1, shape.heads, shape.head_dim)
    kv = kind(one_layer, slots=3, slot_tokens=2 * PAGE_TOKENS, dtype=dtype, device=device)
    random = torch.Generator().manual_seed(0)
    long, short = PAGE_TOKENS + 7, 5
    read = slot_step(kv, [], [], (ChunkRows(2, 0, 0, long), ChunkRows(1, 0, long, long + short)))
    beside = slot_step(kv, [1], [short], (ChunkRows(2, long, 1, 1 + TRIAL_CHUNK),))
    results = []
    for step, rows in ((read, long + short), (beside, 1 + TRIAL_CHUNK)):
        query, key, value = (
            torch.randn(1, heads, rows, shape.head_dim, generator=random).to(device, dtype)
            for heads in (query_heads, shape.heads, shape.heads)
        )
        with over_slots(step):
            results.append(slot_attention(_Layer(), query, key, value, None, sliding_window=window)[0][0])
    return torch.cat(results)


class _Layer(nn.Module):
    """What attention asks of a model's layer."""

    layer_idx = 0
