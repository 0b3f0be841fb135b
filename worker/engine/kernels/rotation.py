"""Rotary position embedding (Su et al. 2021) of queries and keys, in place and in one call."""

import numpy as np
import torch

from worker.engine.kernels.arithmetic import narrow, widen
from worker.engine.kernels.intrinsics import integer, put_single, rounded, single, take
from worker.engine.kernels.kernel import Kernel

PARALLEL_VALUES = 2**16
"""From here on threads pay: one core takes 30 us for them, waking another up to 20."""


def _rotate(block: int) -> None:
    cosine, sine, rows, width, is_half = (
        integer(block, 1),
        integer(block, 2),
        integer(block, 3),
        integer(block, 4),
        integer(block, 5),
    )
    value_bytes = 2 if is_half else 4
    middle = width // 2
    scratch = np.empty(4 * width, np.float32)
    cosines = scratch.ctypes.data
    sines, head, turned = cosines + 4 * width, cosines + 8 * width, cosines + 12 * width
    while True:
        row = take(block)
        if row >= rows:
            break
        widen(cosine + row * width * value_bytes, width, is_half, cosines)
        widen(sine + row * width * value_bytes, width, is_half, sines)
        for part in range(2):
            start, stride, heads = (
                integer(block, 6 + 3 * part),
                integer(block, 7 + 3 * part),
                integer(block, 8 + 3 * part),
            )
            for index in range(heads):
                place = start + (row * stride + index * width) * value_bytes
                widen(place, width, is_half, head)
                for at in range(middle):
                    put_single(turned, at, -single(head, middle + at))
                    put_single(turned, middle + at, single(head, at))
                if is_half:
                    for at in range(width):
                        own = rounded(single(head, at) * single(cosines, at))
                        put_single(head, at, own + rounded(single(turned, at) * single(sines, at)))
                else:
                    for at in range(width):
                        own = single(head, at) * single(cosines, at)
                        put_single(head, at, own + single(turned, at) * single(sines, at))
                narrow(head, width, is_half, place)
    scratch[0] = 0.0  # numba frees an array after its last use, and does not see those by address


ROTATE = Kernel(_rotate)


def rotate(query: torch.Tensor, key: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> None:
    """Turn each head of `query` [rows, query heads * head_dim] and `key` [rows, heads * head_dim] in place.

    `cosine` and `sine` have shape [rows, head_dim], contiguous, their halves alike; all are float32 or bfloat16. The
    columns of `query` and `key` must lie side by side; their rows need not. Both products are rounded to the dtype
    before they are added.
    """
    rows, width = cosine.shape
    run = ROTATE.in_parallel if query.numel() >= PARALLEL_VALUES else ROTATE
    run(
        *(cosine.data_ptr(), sine.data_ptr(), rows, width, query.dtype == torch.bfloat16),
        *(query.data_ptr(), query.stride(0), query.shape[1] // width),
        *(key.data_ptr(), key.stride(0), key.shape[1] // width),
    )
