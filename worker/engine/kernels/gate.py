"""The gate of a gated feed-forward (Shazeer 2020), silu(gate) * up, in one call."""

import numpy as np
import torch

from worker.engine.kernels.arithmetic import ONE, exponential, narrow, widen
from worker.engine.kernels.intrinsics import integer, put_single, rounded, single, take
from worker.engine.kernels.kernel import Kernel, as_rows

PARALLEL_VALUES = 2**14
"""From here on threads pay: one core takes 20 us for them, waking another up to 20."""


def _gate(block: int) -> None:
    gate, gate_stride, up, up_stride = integer(block, 1), integer(block, 2), integer(block, 3), integer(block, 4)
    target, rows, width, is_half = integer(block, 5), integer(block, 6), integer(block, 7), integer(block, 8)
    value_bytes = 2 if is_half else 4
    scratch = np.empty(2 * width, np.float32)
    gates, ups = scratch.ctypes.data, scratch.ctypes.data + 4 * width
    while True:
        row = take(block)
        if row >= rows:
            break
        widen(gate + row * gate_stride * value_bytes, width, is_half, gates)
        widen(up + row * up_stride * value_bytes, width, is_half, ups)
        if is_half:
            for index in range(width):
                value = single(gates, index)
                opened = rounded(value / (ONE + exponential(-value)))
                put_single(gates, index, opened * single(ups, index))
        else:
            for index in range(width):
                value = single(gates, index)
                put_single(gates, index, value / (ONE + exponential(-value)) * single(ups, index))
        narrow(gates, width, is_half, target + row * width * value_bytes)
    scratch[0] = 0.0  # numba frees an array after its last use, and does not see those by address


GATE = Kernel(_gate)


def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(`gate`) * `up`, both [..., width] in float32 or bfloat16; silu is rounded to it before the product.

    Columns of a wider tensor are read in place.
    """
    width = gate.shape[-1]
    result = gate.new_empty(gate.shape)
    gate, rows, gate_stride = as_rows(gate)
    up, _, up_stride = as_rows(up)
    run = GATE.in_parallel if rows * width >= PARALLEL_VALUES else GATE
    run(
        *(gate.data_ptr(), gate_stride, up.data_ptr(), up_stride, result.data_ptr()),
        *(rows, width, gate.dtype == torch.bfloat16),
    )
    return result
