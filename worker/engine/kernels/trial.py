"""Every kernel against torch's operations, on small random numbers, before any of them serves."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from worker.engine.kernels.choice import Kernels, Product
from worker.engine.kernels.few_rows import MOST_ROWS, FewRows
from worker.engine.kernels.gate import silu_times
from worker.engine.kernels.largest import largest
from worker.engine.kernels.norm import rms_norm
from worker.engine.kernels.pair_update import add_pairs
from worker.engine.kernels.rotation import rotate
from worker.engine.kernels.row_attention import attend_rows
from worker.engine.kernels.tiles import HAS_PAIRS

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Of the results, whose size is about 1 to 8: some rounding steps of sums in another order."""

WIDTH, ROWS, HEADS, HEAD_DIM = 96, 5, 2, 32


@torch.inference_mode()
def tried(dtype: torch.dtype) -> Kernels | str:
    """The kernels, or a sentence about the first that computes something else than torch."""
    for name, found, expected in _results(dtype):
        difference = float((found.float() - expected.float()).abs().max())
        if not difference <= TOLERANCE[dtype]:  # NaN is no agreement
            return f"{name} differs from torch's operations by {difference:.2g}"
    return Kernels(
        rms_norm=rms_norm,
        silu_times=silu_times,
        rotate=rotate,
        attend_rows=attend_rows,
        add_pairs=add_pairs,
        largest=largest,
        few_rows=few_rows if dtype == torch.bfloat16 and _few_rows_agree() else None,
        most_rows=MOST_ROWS,
    )


def few_rows(packed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    """The product over oneDNN's copy of `weight`."""
    outputs, inputs = weight.shape
    return FewRows(packed, outputs, inputs, bias)


def _results(dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Each kernel's name, its result, and torch's."""
    random = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=random).to(dtype)

    rows, weight, other = draw(ROWS, WIDTH), draw(WIDTH), draw(ROWS, WIDTH)
    normed = F.rms_norm(rows.float(), (WIDTH,), weight.float(), 1e-6)
    yield "normalization", rms_norm(rows, weight, 1e-6), normed
    yield "normalization by Gemma", rms_norm(rows, weight - 1, 1e-6, one_more=True), normed
    yield "the gate", silu_times(rows, other), F.silu(rows) * other
    turned, angles = draw(ROWS, HEADS * HEAD_DIM), draw(ROWS, HEAD_DIM // 2).repeat(1, 2).float()
    heads = turned.view(ROWS, HEADS, HEAD_DIM).float()
    first, second = heads.chunk(2, dim=-1)
    expected = heads * angles.cos()[:, None] + torch.cat((-second, first), dim=-1) * angles.sin()[:, None]
    key = turned[:, :HEAD_DIM].clone()
    rotate(turned, key, angles.cos().to(dtype), angles.sin().to(dtype))
    yield "rotation", turned, expected.view(ROWS, -1)
    yield "rotation of keys", key, expected[:, 0]
    logits = draw(ROWS, 1000)
    logits[:, -1] = logits[:, 700] = 8.0
    tokens, totals = largest(logits)
    yield "the largest logits", tokens, torch.full((ROWS,), 700)
    yield "sums of logits", totals, logits.float().logsumexp(dim=-1)
    yield "attention", *_attentions(draw(1, ROWS, 3 * HEADS, HEAD_DIM), draw(2, ROWS, HEADS, 40, HEAD_DIM))
    yield "adapters' update", *_updates(rows, other, draw(16, WIDTH) / WIDTH**0.5, draw(16, WIDTH))


def _attentions(query: torch.Tensor, stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows at several positions, whose own key and value are in `stored` already in the expected result."""
    keys, values = stored.clone()
    positions = torch.arange(ROWS) * 8 + 3
    every = torch.arange(ROWS)
    own_key, own_value = (each[every, :, positions].transpose(0, 1).contiguous() for each in (keys, values))
    keys[every, :, positions] = values[every, :, positions] = 0
    out = torch.empty_like(query[0])
    attend_rows(
        (keys, values),
        every,
        positions,
        query[0].transpose(0, 1),
        own_key,
        own_value,
        window=None,
        scale=0.2,
        used=40,
        out=out,
    )
    mask = torch.arange(40) <= positions[:, None]
    asked, own_keys, own_values = query[0][:, :, None].float(), stored[0].float(), stored[1].float()
    expected = F.scaled_dot_product_attention(
        asked, own_keys, own_values, attn_mask=mask[:, None, None], scale=0.2, enable_gqa=True
    )
    return out, expected[:, :, 0]


def _updates(
    rows: torch.Tensor, output: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two adapters of rank 8 and 5 and rows of the base; in the expected result, one row at a time."""
    slots, ranks = torch.tensor([0, -1, 1, 1, 0]), torch.tensor([8, 5])
    found, expected = output.clone(), output.clone()
    add_pairs(rows, found, a, b, slots, ranks, 8)
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            own = slice(8 * slot, 8 * slot + int(ranks[slot]))
            expected[row] += (rows[row] @ a[own].t()) @ b[own]
    return found, expected


def _few_rows_agree() -> bool:
    """Whether the product over oneDNN's packed weight is right, for a whole block of its order and a part of one."""
    if not HAS_PAIRS or not torch.backends.mkldnn.is_available():
        return False
    random = torch.Generator().manual_seed(0)
    weight, bias, rows = (
        torch.randn(*size, generator=random).bfloat16() for size in ((97, 70), (97,), (MOST_ROWS, 70))
    )
    try:
        found = few_rows(torch.ops.mkldnn._reorder_linear_weight(weight), weight, bias)(rows)
    except (AttributeError, RuntimeError, TypeError):  # private to torch, or another order of the weight
        return False
    difference = float((found.float() - F.linear(rows, weight, bias).float()).abs().max())
    return difference <= TOLERANCE[torch.bfloat16]
