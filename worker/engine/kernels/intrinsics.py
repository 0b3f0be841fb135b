"""What kernels say to the processor directly: memory by its address, and operations that numba has none for.

Addresses are integers; an index counts elements behind one. Nothing is checked: who hands addresses to a kernel
answers for their shapes. Each function is LLVM code that numba puts where it is called; Python cannot call one.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


class Spelled(ir.Type):  # type: ignore[misc] # llvmlite has no types, so that its class is Any
    """A type of LLVM's that llvmlite has no class for."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self._spelling = spelling

    def _to_string(self) -> str:
        return self._spelling

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spelled) and other._spelling == self._spelling

    def __hash__(self) -> int:
        return hash(self._spelling)


def function(result: Any, arguments: Sequence[Any], body: Callable[..., Any]) -> Any:
    """A function for kernels of these types, whose code `body(builder, *arguments)` writes."""
    signature = result(*arguments)

    def codegen(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return body(builder, *values)

    # numba asks for a function that names each argument.
    by_count: dict[int, Callable[..., Any]] = {
        1: lambda _typing, a: (signature, codegen),  # noqa: ARG005
        2: lambda _typing, a, b: (signature, codegen),  # noqa: ARG005
        3: lambda _typing, a, b, c: (signature, codegen),  # noqa: ARG005
        4: lambda _typing, a, b, c, d: (signature, codegen),  # noqa: ARG005
        6: lambda _typing, a, b, c, d, e, f: (signature, codegen),  # noqa: ARG005
    }
    return intrinsic(by_count[len(arguments)])


def at(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [index])


def widened(builder: Any, bits: Any) -> Any:
    """bfloat16 is the upper half of a float32."""
    return builder.bitcast(builder.shl(builder.zext(bits, I32), I32(16)), F32)


def _narrowed(builder: Any, value: Any) -> Any:
    """Rounded to the nearest, ties to even, as torch does; NaN stays NaN."""
    bits = builder.bitcast(value, I32)
    odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, I32(0x7FFF))), I32(16))
    rounded = builder.select(builder.fcmp_unordered("uno", value, value), I32(0x7FC0), rounded)
    return builder.trunc(rounded, I16)


def _store(builder: Any, value: Any, place: Any) -> Any:
    builder.store(value, place)
    return I64(0)


integer: Callable[[int, int], int] = function(
    types.int64, [types.int64] * 2, lambda b, address, index: b.load(at(b, address, index, I64))
)
"""(address, index): an int64."""

single: Callable[[int, int], float] = function(
    types.float32, [types.int64] * 2, lambda b, address, index: b.load(at(b, address, index, F32))
)
"""(address, index): a float32."""

half: Callable[[int, int], float] = function(
    types.float32, [types.int64] * 2, lambda b, address, index: widened(b, b.load(at(b, address, index, I16)))
)
"""(address, index): a bfloat16."""

put_integer: Callable[[int, int, int], int] = function(
    types.int64,
    [types.int64] * 3,
    lambda b, address, index, value: _store(b, value, at(b, address, index, I64)),
)
"""(address, index, value): write an int64."""

put_single: Callable[[int, int, float], int] = function(
    types.int64,
    [types.int64, types.int64, types.float32],
    lambda b, address, index, value: _store(b, value, at(b, address, index, F32)),
)
"""(address, index, value): write a float32."""

put_half: Callable[[int, int, float], int] = function(
    types.int64,
    [types.int64, types.int64, types.float32],
    lambda b, address, index, value: _store(b, _narrowed(b, value), at(b, address, index, I16)),
)
"""(address, index, value): write a bfloat16."""

rounded: Callable[[float], float] = function(
    types.float32, [types.float32], lambda b, value: widened(b, _narrowed(b, value))
)
"""(value): the nearest bfloat16."""

floor: Callable[[float], float] = function(
    types.float32,
    [types.float32],
    lambda b, value: b.call(
        cgutils.get_or_insert_function(b.module, ir.FunctionType(F32, [F32]), "llvm.floor.f32"), [value]
    ),
)
"""(value): the largest whole number that is not above it. numba's own calls a library, one value at a time."""

power_of_two: Callable[[float], float] = function(
    types.float32,
    [types.float32],
    lambda b, value: b.bitcast(b.shl(b.add(b.fptosi(value, I32), I32(127)), I32(23)), F32),
)
"""(whole number from -126 to 127): two to this power."""

to_single: Callable[[int], float] = function(types.float32, [types.int64], lambda b, value: b.sitofp(value, F32))
"""(whole number): the nearest float32."""

from_bits: Callable[[int], float] = function(
    types.float32, [types.int64], lambda b, value: b.bitcast(b.trunc(value, I32), F32)
)
"""(bits): the float32 that they are; a kernel's arguments are all integers."""

take: Callable[[int], int] = function(
    types.int64,
    [types.int64],
    lambda b, address: b.atomic_rmw("add", b.inttoptr(address, I64.as_pointer()), I64(1), "monotonic"),
)
"""(address): the number there, which then is one higher; no other thread gets the same."""
