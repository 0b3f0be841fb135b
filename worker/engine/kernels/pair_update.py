"""All adapters' updates of one linear layer in one call: each row with the pair of its own slot, and no other's.

Products of all rows with all of a step's adapters (`LayerSlots`) do eight times the work of eight adapters, and start
three operations of torch for each layer.
"""

import numpy as np
import torch

from worker.engine.kernels.arithmetic import ZERO, narrow, widen
from worker.engine.kernels.intrinsics import half, integer, put_single, rounded, single, take
from worker.engine.kernels.kernel import Kernel

PARALLEL_PRODUCTS = 2**19
"""From here on threads pay: one core takes 50 us for them, waking another up to 20."""


def _update(block: int) -> None:
    source, source_stride, target, target_stride = (
        integer(block, 1),
        integer(block, 2),
        integer(block, 3),
        integer(block, 4),
    )
    a, b, slots, ranks, rank = (
        integer(block, 5),
        integer(block, 6),
        integer(block, 7),
        integer(block, 8),
        integer(block, 9),
    )
    rows, inputs, outputs, is_half = integer(block, 10), integer(block, 11), integer(block, 12), integer(block, 13)
    value_bytes = 2 if is_half else 4
    scratch = np.empty(inputs + outputs, np.float32)
    values = scratch.ctypes.data
    sums = values + 4 * inputs
    while True:
        row = take(block)
        if row >= rows:
            break
        slot = integer(slots, row)
        own_rank = integer(ranks, slot) if slot >= 0 else 0
        if own_rank == 0:
            continue
        widen(source + row * source_stride * value_bytes, inputs, is_half, values)
        place = target + row * target_stride * value_bytes
        widen(place, outputs, is_half, sums)
        for one in range(slot * rank, slot * rank + own_rank):
            own_a, own_b = a + one * inputs * value_bytes, b + one * outputs * value_bytes
            low = ZERO
            if is_half:
                for index in range(inputs):
                    low += single(values, index) * half(own_a, index)
                low = rounded(low)
                for index in range(outputs):
                    put_single(sums, index, single(sums, index) + low * half(own_b, index))
            else:
                for index in range(inputs):
                    low += single(values, index) * single(own_a, index)
                for index in range(outputs):
                    put_single(sums, index, single(sums, index) + low * single(own_b, index))
        narrow(sums, outputs, is_half, place)
    scratch[0] = 0.0  # numba frees an array after its last use, and does not see those by address


UPDATE = Kernel(_update)


def add_pairs(
    rows: torch.Tensor,
    output: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    slots: torch.Tensor,
    ranks: torch.Tensor,
    largest: int,
) -> None:
    """Add B^T A x to each row of `output` [n, outputs] in place; x are the `rows` [n, inputs].

    `a` [slots * rank, inputs] and `b` [slots * rank, outputs] hold the pairs of all slots; `slots` [n], int64, says
    each row's (negative: none, and nothing is added); `ranks` [slots], int64, how many rows of a slot are used, and
    `largest` about the largest of them. The tensors are float32 or bfloat16, with columns side by side; A x is
    rounded to it, as torch's products do.
    """
    count, inputs = rows.shape
    outputs = output.shape[1]
    run = UPDATE.in_parallel if count * (inputs + outputs) * largest >= PARALLEL_PRODUCTS else UPDATE
    run(
        *(rows.data_ptr(), rows.stride(0), output.data_ptr(), output.stride(0)),
        *(a.data_ptr(), b.data_ptr(), slots.data_ptr(), ranks.data_ptr(), a.shape[0] // ranks.shape[0]),
        *(count, inputs, outputs, rows.dtype == torch.bfloat16),
    )
