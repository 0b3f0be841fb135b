"""Root mean square normalization (Zhang and Sennrich 2019) as transformers' models compute it, in one call."""

import math

import numpy as np
import torch

from worker.engine.kernels.arithmetic import ONE, ZERO, narrow, widen
from worker.engine.kernels.intrinsics import from_bits, integer, put_single, rounded, single, take, to_single
from worker.engine.kernels.kernel import Kernel, as_rows, bits

ROWS_AT_ONCE = 8
"""Rows of one item: enough that taking it costs nothing."""

PARALLEL_VALUES = 2**16
"""From here on threads pay: one core takes 30 us for them, waking another up to 20."""


def _norm(block: int) -> None:
    source, weight, target = integer(block, 1), integer(block, 2), integer(block, 3)
    rows, width, stride = integer(block, 4), integer(block, 5), integer(block, 6)
    is_half, epsilon, one_more = integer(block, 7), from_bits(integer(block, 8)), integer(block, 9)
    value_bytes = 2 if is_half else 4
    scratch = np.empty(2 * width, np.float32)
    values, weights = scratch.ctypes.data, scratch.ctypes.data + 4 * width
    widen(weight, width, is_half, weights)
    if one_more:
        for index in range(width):
            put_single(weights, index, single(weights, index) + ONE)
    while True:
        first = take(block) * ROWS_AT_ONCE
        if first >= rows:
            break
        for row in range(first, min(first + ROWS_AT_ONCE, rows)):
            widen(source + row * stride * value_bytes, width, is_half, values)
            total = ZERO
            for index in range(width):
                total += single(values, index) * single(values, index)
            factor = ONE / math.sqrt(total / to_single(width) + epsilon)
            if is_half and not one_more:
                for index in range(width):
                    put_single(values, index, rounded(single(values, index) * factor) * single(weights, index))
            else:
                for index in range(width):
                    put_single(values, index, single(values, index) * factor * single(weights, index))
            narrow(values, width, is_half, target + row * width * value_bytes)
    scratch[0] = 0.0  # numba frees an array after its last use, and does not see those by address


NORM = Kernel(_norm)


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, epsilon: float, *, one_more: bool = False) -> torch.Tensor:
    """`rows` [..., width] by the root of their mean square, times `weight` [width]; both in float32 or bfloat16.

    The quotient is rounded to the rows' dtype before it is multiplied, as Llama's is; with `one_more`, Gemma's way,
    it is not, and the factor is `weight` + 1.
    """
    width = rows.shape[-1]
    result = rows.new_empty(rows.shape)
    rows, count, stride = as_rows(rows)
    run = NORM.in_parallel if count * width >= PARALLEL_VALUES else NORM
    run(
        *(rows.data_ptr(), weight.data_ptr(), result.data_ptr(), count, width, stride),
        *(rows.dtype == torch.bfloat16, bits(epsilon), one_more),
    )
    return result
