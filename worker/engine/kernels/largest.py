"""Each row's largest logit and the logarithm of the sum of all their exponentials, in one reading of the logits."""

import math

import numpy as np
import torch

from worker.engine.kernels.arithmetic import LOWEST_SINGLE, ZERO, exponential, widen
from worker.engine.kernels.intrinsics import integer, put_integer, put_single, single, take
from worker.engine.kernels.kernel import Kernel, as_rows, device

VALUES_AT_ONCE = 512
"""Read together: as float32 they and half of them again stay in the processor's nearest memory, of 32 KB."""

LANES = 16
"""Largest values that are kept side by side: a register of AVX-512. One alone would not become vectors."""

PARALLEL_VALUES = 2**15
"""From here on threads pay: one core takes 15 us for them, waking another up to 20."""


@device
def largest_of(values: int, halves: int) -> float:
    """The largest of `VALUES_AT_ONCE` float32 values; `halves` is room for half of them. It passes over NaN."""
    half = VALUES_AT_ONCE // 2
    for index in range(half):
        one, other = single(values, index), single(values, half + index)
        put_single(halves, index, one if one > other else other)
    while half > LANES:
        half //= 2
        for index in range(half):
            one, other = single(halves, index), single(halves, half + index)
            put_single(halves, index, one if one > other else other)
    largest = single(halves, 0)
    for index in range(1, LANES):
        largest = max(largest, single(halves, index))
    return largest


def _largest(block: int) -> None:
    source, rows, width, stride = integer(block, 1), integer(block, 2), integer(block, 3), integer(block, 4)
    is_half, tokens, totals = integer(block, 5), integer(block, 6), integer(block, 7)
    value_bytes = 2 if is_half else 4
    scratch = np.empty(3 * VALUES_AT_ONCE // 2, np.float32)
    values, halves = scratch.ctypes.data, scratch.ctypes.data + 4 * VALUES_AT_ONCE
    while True:
        row = take(block)
        if row >= rows:
            break
        begin = source + row * stride * value_bytes
        largest, total, place = LOWEST_SINGLE, ZERO, 0
        for first in range(0, width, VALUES_AT_ONCE):
            count = min(VALUES_AT_ONCE, width - first)
            widen(begin + first * value_bytes, count, is_half, values)
            for index in range(count, VALUES_AT_ONCE):
                put_single(values, index, LOWEST_SINGLE)
            found = largest_of(values, halves)
            if found > largest:
                total *= exponential(largest - found)
                largest, place = found, first
            for index in range(VALUES_AT_ONCE):
                total += exponential(single(values, index) - largest)
        count = min(VALUES_AT_ONCE, width - place)
        widen(begin + place * value_bytes, count, is_half, values)
        token = 0
        while token < count - 1 and single(values, token) != largest:
            token += 1
        put_integer(tokens, row, place + token)
        put_single(totals, row, largest + math.log(total))
    scratch[0] = 0.0  # numba frees an array after its last use, and does not see those by address


LARGEST = Kernel(_largest)


def largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's argmax (int64) and logsumexp (float32); `logits` are [rows, vocabulary] in float32 or bfloat16.

    Of equal largest logits the first counts, as for torch. A row with NaN has NaN for its logsumexp, and any token.
    """
    rows = logits.shape[0]
    tokens, totals = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.float32)
    width = logits.shape[1]
    logits, count, stride = as_rows(logits)
    run = LARGEST.in_parallel if rows > 1 and rows * width >= PARALLEL_VALUES else LARGEST
    run(
        *(logits.data_ptr(), count, width, stride, logits.dtype == torch.bfloat16),
        *(tokens.data_ptr(), totals.data_ptr()),
    )
    return tokens, totals
