"""A linear layer's product for the few rows of a decode step, over the weight as oneDNN packs it.

With few rows a product is as fast as the weight is read. oneDNN's own reaches half of that, this one nearly all. It
reads the copy that oneDNN made (see `linears.packed`), in the order [outputs / 64][inputs / 2][64][2], filled up with
zeros: one copy serves both, and oneDNN's product keeps the many rows.
"""

import numpy as np
import torch

from worker.engine.kernels.arithmetic import narrow
from worker.engine.kernels.intrinsics import half, integer, put_single, single, take
from worker.engine.kernels.kernel import Kernel, as_rows
from worker.engine.kernels.tiles import (
    COLUMNS,
    PAIR_BYTES,
    outputs_1,
    outputs_2,
    outputs_3,
    outputs_4,
    outputs_5,
    outputs_6,
)

MOST_ROWS = 192
"""Of which this product is the faster one (docs/decisions/0015)."""

TILE_ROWS = 6
"""Rows computed at once: their sums and a block's weights fill the 32 registers of 512 bits."""


def _multiply(block: int) -> None:
    source, source_bytes, weight, bias = integer(block, 1), integer(block, 2), integer(block, 3), integer(block, 4)
    target, rows, inputs, outputs = integer(block, 5), integer(block, 6), integer(block, 7), integer(block, 8)
    pairs = inputs // 2
    packed_pairs = integer(block, 9)
    scratch = np.empty(TILE_ROWS * COLUMNS, np.float32)
    sums = scratch.ctypes.data
    while True:
        first = take(block) * COLUMNS
        if first >= outputs:
            break
        columns = min(COLUMNS, outputs - first)
        weights = weight + first // COLUMNS * packed_pairs * PAIR_BYTES
        for row in range(0, rows, TILE_ROWS):
            count = min(TILE_ROWS, rows - row)
            start = source + row * source_bytes
            if count == 6:
                outputs_6(start, source_bytes, weights, pairs, sums, 4 * COLUMNS)
            elif count == 5:
                outputs_5(start, source_bytes, weights, pairs, sums, 4 * COLUMNS)
            elif count == 4:
                outputs_4(start, source_bytes, weights, pairs, sums, 4 * COLUMNS)
            elif count == 3:
                outputs_3(start, source_bytes, weights, pairs, sums, 4 * COLUMNS)
            elif count == 2:
                outputs_2(start, source_bytes, weights, pairs, sums, 4 * COLUMNS)
            else:
                outputs_1(start, source_bytes, weights, pairs, sums, 4 * COLUMNS)
            for one in range(count):
                own = sums + 4 * COLUMNS * one
                if bias:
                    for column in range(columns):
                        put_single(own, column, single(own, column) + half(bias, first + column))
                narrow(own, columns, 1, target + ((row + one) * outputs + first) * 2)
    scratch[0] = 0.0  # numba frees an array after its last use, and does not see those by address


MULTIPLY = Kernel(_multiply)


class FewRows:
    """input [..., in_features] to output [..., out_features] in bfloat16, for up to `MOST_ROWS` rows."""

    def __init__(self, packed: torch.Tensor, outputs: int, inputs: int, bias: torch.Tensor | None) -> None:
        """`packed` is oneDNN's copy; `inputs` must be even. Raises AttributeError where torch hides its memory."""
        self._packed = packed  # holds the memory
        self._address = int(torch.ops.mkldnn.data_ptr(packed))
        size = int(torch.ops.mkldnn._nbytes(packed))
        blocks = -(-outputs // COLUMNS)
        self._pairs, rest = divmod(size, blocks * PAIR_BYTES)
        if rest or inputs % 2 or self._pairs * 2 < inputs:
            raise AttributeError("oneDNN packs this weight in another order")
        self._outputs, self._inputs = outputs, inputs
        self._bias = bias

    def __call__(self, layer_input: torch.Tensor) -> torch.Tensor:
        """A row's result is the same bits whatever other rows there are."""
        source, rows, stride = as_rows(layer_input)
        result = layer_input.new_empty((*layer_input.shape[:-1], self._outputs))
        MULTIPLY.in_parallel(
            *(source.data_ptr(), 2 * stride, self._address, 0 if self._bias is None else self._bias.data_ptr()),
            *(result.data_ptr(), rows, self._inputs, self._outputs, self._pairs),
        )
        return result
