"""Decoding rows stored in their slots and attended, in one call a layer: each row over its own tokens and no others.

Batched products would compute all slots as far as the longest sequence goes, and want them in float32; here every row
reads what it sees, and slots in bfloat16 are half the bytes.
"""

import numpy as np
import torch

from worker.engine.kernels.arithmetic import ONE, ZERO, exponential, narrow, widen
from worker.engine.kernels.intrinsics import from_bits, half, integer, put_single, single, take
from worker.engine.kernels.kernel import Kernel, bits, device
from worker.engine.kernels.tiles import (
    LANES,
    mixed_half_1,
    mixed_half_2,
    mixed_half_4,
    mixed_single_1,
    mixed_single_2,
    mixed_single_4,
    scores_half,
    scores_single,
)

COLUMNS = 2 * LANES
"""A head of a multiple of so many values is computed in registers; any other in plain loops."""

PARALLEL_VALUES = 2**15
"""Keys' values from here on threads pay: one core takes about 20 us for them, waking another up to 20."""


@device
def score(query: int, keys: int, room: int, seen: int, width: int, is_half: int, scores: int) -> None:
    """Products of a query with the `seen` keys at `keys`, [seen, width], in its dtype; `room` keys may be read."""
    value_bytes = 2 if is_half else 4
    done = 0
    if width % COLUMNS == 0:
        while done < seen and done + LANES <= room:
            there = keys + done * width * value_bytes
            if is_half:
                scores_half(query, there, width, scores + 4 * done)
            else:
                scores_single(query, there, width, scores + 4 * done)
            done += LANES
    for token in range(done, seen):
        there = keys + token * width * value_bytes
        total = ZERO
        if is_half:
            for index in range(width):
                total += half(query, index) * half(there, index)
        else:
            for index in range(width):
                total += single(query, index) * single(there, index)
        put_single(scores, token, total)


@device
def weigh(scores: int, seen: int, scale: float) -> None:
    """The softmax of the scaled scores, in their place."""
    largest = single(scores, 0)
    for token in range(seen):
        largest = max(largest, single(scores, token))
    total = ZERO
    for token in range(seen):
        weight = exponential((single(scores, token) - largest) * scale)
        put_single(scores, token, weight)
        total += weight
    share = ONE / total
    for token in range(seen):
        put_single(scores, token, single(scores, token) * share)


@device
def mix_in_registers(
    weights: int, stride: int, values: int, seen: int, width: int, queries: int, is_half: int, out: int
) -> int:
    """32 columns of the values by the weights of up to `queries` queries; returns of how many."""
    if queries >= 4:
        if is_half:
            mixed_half_4(weights, stride, values, width, seen, out)
        else:
            mixed_single_4(weights, stride, values, width, seen, out)
        return 4
    if queries >= 2:
        if is_half:
            mixed_half_2(weights, stride, values, width, seen, out)
        else:
            mixed_single_2(weights, stride, values, width, seen, out)
        return 2
    if is_half:
        mixed_half_1(weights, stride, values, width, seen, out)
    else:
        mixed_single_1(weights, stride, values, width, seen, out)
    return 1


@device
def mix_in_loops(weights: int, values: int, seen: int, width: int, is_half: int, out: int) -> None:
    """All columns of the values by the weights of one query."""
    for index in range(width):
        put_single(out, index, ZERO)
    for token in range(seen):
        weight, there = single(weights, token), values + token * width * (2 if is_half else 4)
        if is_half:
            for index in range(width):
                put_single(out, index, single(out, index) + weight * half(there, index))
        else:
            for index in range(width):
                put_single(out, index, single(out, index) + weight * single(there, index))


@device
def mix(weights: int, stride: int, values: int, seen: int, width: int, group: int, is_half: int, sums: int) -> None:
    """[group, width]: the values at `values`, [seen, width], by the weights of each query of a group."""
    if width % COLUMNS:
        for query in range(group):
            mix_in_loops(weights + query * stride, values, seen, width, is_half, sums + 4 * query * width)
        return
    for column in range(0, width, COLUMNS):
        there = values + column * (2 if is_half else 4)
        done = 0
        while done < group:
            out = sums + 4 * (done * width + column)
            done += mix_in_registers(weights + done * stride, stride, there, seen, width, group - done, is_half, out)


def _attend(block: int) -> None:
    query, query_row, query_head = integer(block, 1), integer(block, 2), integer(block, 3)
    key, key_row, key_head = integer(block, 4), integer(block, 5), integer(block, 6)
    value, value_row, value_head = integer(block, 7), integer(block, 8), integer(block, 9)
    keys, values = integer(block, 10), integer(block, 11)
    slot_stride, head_stride, slot_tokens = integer(block, 12), integer(block, 13), integer(block, 14)
    slots, positions, rows = integer(block, 15), integer(block, 16), integer(block, 17)
    heads, group, width = integer(block, 18), integer(block, 19), integer(block, 20)
    is_half, slots_are_half = integer(block, 21), integer(block, 22)
    window, scale = integer(block, 23), from_bits(integer(block, 24))
    longest, target = integer(block, 25), integer(block, 26)
    row_bytes = 2 if is_half else 4
    slot_bytes = 2 if slots_are_half else 4
    stride = 4 * (longest + LANES)
    scratch = np.empty((group + 2) * width + group * (longest + LANES), np.float32)
    wide = scratch.ctypes.data
    asked = wide + 4 * width
    sums = asked + 4 * width
    weights = sums + 4 * group * width
    while True:
        item = take(block)
        if item >= rows * heads:
            break
        row, head = item // heads, item % heads
        last = integer(positions, row)
        first = max(0, last - window + 1) if window else 0
        seen = last + 1 - first
        in_slot = (integer(slots, row) * slot_stride + head * head_stride) * slot_bytes
        own, begin = in_slot + last * width * slot_bytes, in_slot + first * width * slot_bytes
        widen(key + (row * key_row + head * key_head) * row_bytes, width, is_half, wide)
        narrow(wide, width, slots_are_half, keys + own)
        widen(value + (row * value_row + head * value_head) * row_bytes, width, is_half, wide)
        narrow(wide, width, slots_are_half, values + own)
        for one in range(group):
            widen(query + (row * query_row + (head * group + one) * query_head) * row_bytes, width, is_half, wide)
            narrow(wide, width, slots_are_half, asked)
            score(asked, keys + begin, slot_tokens - first, seen, width, slots_are_half, weights + one * stride)
            weigh(weights + one * stride, seen, scale)
        mix(weights, stride, values + begin, seen, width, group, slots_are_half, sums)
        narrow(sums, group * width, is_half, target + (row * heads + head) * group * width * row_bytes)
    scratch[0] = 0.0  # numba frees an array after its last use, and does not see those by address


ATTEND = Kernel(_attend)


def attend_rows(
    stored: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    window: int | None,
    scale: float,
    used: int,
    out: torch.Tensor,
) -> None:
    """Write the rows' keys and values to their slots, attend, and write the result to `out`.

    `stored` are a layer's keys and values, [slots, heads, slot_tokens, head_dim] each, in float32 or the dtype of the
    rows (float32 or bfloat16); `slots` and `positions` have shape [n], int64, no slot twice. `query` has shape [query
    heads, n, head_dim], `key` and `value` [heads, n, head_dim], with the values of a head side by side; `out` [n,
    query heads, head_dim], contiguous. `window`: how many tokens a row sees, its own included; None: all. `used` is
    at least what the longest row sees; `scale` must be positive. Sums and weights are float32.
    """
    query, key, value = (each if each.stride(2) == 1 else each.contiguous() for each in (query, key, value))
    keys, values = stored
    heads, rows, width = key.shape
    run = ATTEND.in_parallel if rows * heads * used * width >= PARALLEL_VALUES else ATTEND
    run(
        *(query.data_ptr(), query.stride(1), query.stride(0)),
        *(key.data_ptr(), key.stride(1), key.stride(0)),
        *(value.data_ptr(), value.stride(1), value.stride(0)),
        *(keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.stride(1), keys.shape[2]),
        *(slots.data_ptr(), positions.data_ptr(), rows, heads, query.shape[0] // heads, width),
        *(query.dtype == torch.bfloat16, keys.dtype == torch.bfloat16, window or 0, bits(scale), used),
        out.data_ptr(),
    )
