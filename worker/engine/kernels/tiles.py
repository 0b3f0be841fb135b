"""Products whose sums stay in the processor's registers while they grow: what LLVM does not find in plain loops.

Each is LLVM code for vectors of sixteen float32, which it fits to whatever registers the processor has.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils

from worker.engine.kernels.intrinsics import F32, I16, I32, I64, Spelled, at, function

LANES = 16
"""Values of 32 bits in a register of 512 bits."""

COLUMNS = 4 * LANES
"""Results of a row that are computed together: one instruction waits four cycles for the one before it."""

PAIR_BYTES = 4 * COLUMNS
"""Of 64 outputs' weights for two inputs: a step through a packed weight (see `few_rows`)."""

HAS_PAIRS = torch.cpu.get_capabilities().get("avx512_bf16", False)
"""Whether the processor multiplies pairs of bfloat16 (AVX512-BF16). numba keeps code for each kind of processor."""

FLOATS, WORDS, SHORTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES), ir.VectorType(I16, LANES)
PAIRS = Spelled(f"<{2 * LANES} x bfloat>")
ZEROS = ir.Constant(FLOATS, [0.0] * LANES)


def _declared(b: Any, name: str, arguments: Sequence[Any]) -> Any:
    return cgutils.get_or_insert_function(b.module, ir.FunctionType(FLOATS, arguments), name)


def _dot(b: Any, total: Any, left: Any, right: Any) -> Any:
    """Adds to each lane the products of its two bfloat16 pairs."""
    return b.call(_declared(b, "llvm.x86.avx512bf16.dpbf16ps.512", [FLOATS, PAIRS, PAIRS]), [total, left, right])


def _multiply_add(b: Any, left: Any, right: Any, total: Any) -> Any:
    return b.call(_declared(b, f"llvm.fma.v{LANES}f32", [FLOATS, FLOATS, FLOATS]), [left, right, total])


def _everywhere(b: Any, value: Any, kind: Any) -> Any:
    """The value in all lanes."""
    nothing = ir.Constant(kind, ir.Undefined)
    return b.shuffle_vector(b.insert_element(nothing, value, I32(0)), nothing, ir.Constant(WORDS, [0] * LANES))


def _read(b: Any, address: Any, index: Any, *, is_half: bool) -> Any:
    """Sixteen values as float32, from the element `index` on."""
    if not is_half:
        return b.load(b.bitcast(at(b, address, index, F32), FLOATS.as_pointer()), align=4)
    bits = b.load(b.bitcast(at(b, address, index, I16), SHORTS.as_pointer()), align=2)
    return b.bitcast(b.shl(b.zext(bits, WORDS), ir.Constant(WORDS, [16] * LANES)), FLOATS)


def _write(b: Any, value: Any, address: Any, index: Any) -> None:
    b.store(value, b.bitcast(at(b, address, index, F32), FLOATS.as_pointer()), align=4)


Body = Callable[[Any, list[Any]], list[Any]]
"""From an index and the totals so far to the new ones."""


def _summed(b: Any, count: Any, stride: int, totals: Sequence[Any], body: Body) -> list[Any]:
    """A loop over 0, stride, … below `count`, at least once, that carries totals; returns the last ones."""
    before, loop, after = b.block, b.append_basic_block("more"), b.append_basic_block("done")
    b.branch(loop)
    b.position_at_end(loop)
    index = b.phi(I64)
    index.add_incoming(I64(0), before)
    carried = []
    for total in totals:
        carried.append(b.phi(total.type))
        carried[-1].add_incoming(total, before)
    results = body(index, carried)
    for total, result in zip(carried, results, strict=True):
        total.add_incoming(result, loop)
    following = b.add(index, I64(stride))
    index.add_incoming(following, loop)
    b.cbranch(b.icmp_signed("<", following, count), loop, after)
    b.position_at_end(after)
    return results


Tile = Callable[[int, int, int, int, int, int], int]
"""Of six addresses and sizes."""


def _outputs(rows: int) -> Tile:
    """(rows' address, bytes from row to row, weight's address, pairs of inputs, results' address, bytes from row to
    row): the products of bfloat16 rows with 64 outputs of a packed weight, in float32. A row's sums are made in the
    order of the inputs, however many rows there are. Needs `HAS_PAIRS`."""

    def body(b: Any, rows_at: Any, row_bytes: Any, weight_at: Any, pairs: Any, out_at: Any, out_bytes: Any) -> Any:
        starts = [b.add(rows_at, b.mul(row_bytes, I64(row))) for row in range(rows)]
        blocks = range(COLUMNS // LANES)

        def step(index: Any, sums: list[Any]) -> list[Any]:
            here = b.add(weight_at, b.mul(index, I64(PAIR_BYTES)))
            places = [b.inttoptr(b.add(here, I64(4 * LANES * block)), WORDS.as_pointer()) for block in blocks]
            weights = [b.bitcast(b.load(place, align=4 * LANES), PAIRS) for place in places]
            found = [b.load(at(b, start, index, I32), align=2) for start in starts]
            pairs = [b.bitcast(_everywhere(b, pair, WORDS), PAIRS) for pair in found]
            return [
                _dot(b, sums[row * len(blocks) + block], pairs[row], weights[block])
                for row in range(rows)
                for block in blocks
            ]

        sums = _summed(b, pairs, 1, [ZEROS] * (rows * len(blocks)), step)
        for place, total in enumerate(sums):
            row, block = divmod(place, len(blocks))
            _write(b, total, b.add(out_at, b.mul(out_bytes, I64(row))), I64(LANES * block))
        return I64(0)

    made: Tile = function(types.int64, [types.int64] * 6, body)
    return made


outputs_1, outputs_2, outputs_3, outputs_4, outputs_5, outputs_6 = (_outputs(rows) for rows in range(1, 7))


def _scores(*, is_half: bool) -> Callable[[int, int, int, int], int]:
    """(query's address, keys' address, width, results' address): the products of one query with sixteen keys that
    stand one after another, in float32. All are float32, or all bfloat16; the width must be a multiple of 32."""
    in_pairs = is_half and HAS_PAIRS

    def body(b: Any, query: Any, keys: Any, width: Any, out: Any) -> Any:
        starts = [b.mul(width, I64(key)) for key in range(LANES)]

        def read(address: Any, index: Any) -> Any:
            if in_pairs:
                return b.bitcast(b.load(b.bitcast(at(b, address, index, I16), WORDS.as_pointer()), align=2), PAIRS)
            return _read(b, address, index, is_half=is_half)

        def step(index: Any, sums: list[Any]) -> list[Any]:
            asked = read(query, index)
            found = [read(keys, b.add(start, index)) for start in starts]
            if in_pairs:
                return [_dot(b, total, asked, key) for total, key in zip(sums, found, strict=True)]
            return [_multiply_add(b, asked, key, total) for total, key in zip(sums, found, strict=True)]

        sums = _summed(b, width, 2 * LANES if in_pairs else LANES, [ZEROS] * LANES, step)
        while len(sums) > 1:  # adds neighbouring lanes of two registers into one, until each lane is a key's sum
            sums = [_neighbours(b, sums[place], sums[place + 1]) for place in range(0, len(sums), 2)]
        _write(b, sums[0], out, I64(0))
        return I64(0)

    made: Callable[[int, int, int, int], int] = function(types.int64, [types.int64] * 4, body)
    return made


def _neighbours(b: Any, first: Any, second: Any) -> Any:
    even, odd = (
        b.shuffle_vector(first, second, ir.Constant(WORDS, [*range(start, 2 * LANES, 2)])) for start in (0, 1)
    )
    return b.fadd(even, odd)


scores_single, scores_half = _scores(is_half=False), _scores(is_half=True)


def _mixed(queries: int, *, is_half: bool) -> Tile:
    """(weights' address, bytes from query to query, values' address, width, tokens, results' address): 32 columns of
    the values, summed with the weights of some queries. The values stand one after another; results are [queries,
    width] in float32, written and not added to. Both addresses are those of the first column."""
    blocks = range(2)

    def body(b: Any, weights: Any, weight_bytes: Any, values: Any, width: Any, tokens: Any, out: Any) -> Any:
        starts = [b.add(weights, b.mul(weight_bytes, I64(query))) for query in range(queries)]

        def step(index: Any, sums: list[Any]) -> list[Any]:
            first = b.mul(index, width)
            found = [_read(b, values, b.add(first, I64(LANES * block)), is_half=is_half) for block in blocks]
            shares = [_everywhere(b, b.load(at(b, start, index, F32)), FLOATS) for start in starts]
            return [
                _multiply_add(b, shares[query], found[block], sums[query * len(blocks) + block])
                for query in range(queries)
                for block in blocks
            ]

        for place, total in enumerate(_summed(b, tokens, 1, [ZEROS] * (queries * len(blocks)), step)):
            query, block = divmod(place, len(blocks))
            _write(b, total, out, b.add(b.mul(width, I64(query)), I64(LANES * block)))
        return I64(0)

    made: Tile = function(types.int64, [types.int64] * 6, body)
    return made


mixed_single_1, mixed_single_2, mixed_single_4 = (_mixed(queries, is_half=False) for queries in (1, 2, 4))
mixed_half_1, mixed_half_2, mixed_half_4 = (_mixed(queries, is_half=True) for queries in (1, 2, 4))
