"""What several kernels compute: rows read and written in either precision, and the exponential."""

from typing import cast

import numpy as np

from worker.engine.kernels.intrinsics import floor, half, power_of_two, put_half, put_single, single
from worker.engine.kernels.kernel import device


def constant(value: float) -> float:
    """A float32. With a plain number of Python's, kernels would compute in float64."""
    return cast("float", np.float32(value))


ZERO = constant(0.0)
ONE = constant(1.0)
HALF = constant(0.5)
LOWEST_SINGLE = constant(float(np.finfo(np.float32).min))
"""Below every other number but minus infinity."""
LOG2_E = constant(1.4426950408889634)
LN2_HIGH = constant(0.693359375)
LN2_LOW = constant(-2.12194440e-4)
"""The logarithm of 2 in two parts: the first has few bits, so that its multiples are exact."""
LOWEST = constant(-87.0)
HIGHEST = constant(88.0)
"""Outside, the exponential of a float32 is not a normal number."""
C0, C1, C2, C3, C4, C5 = (
    constant(value)
    for value in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
)
"""Of the polynomial for exp(x) on half a logarithm of 2 around 0 (Cephes, expf.c; relative error 2e-7)."""


@device
def exponential(value: float) -> float:
    """exp of a float32 with a relative error of 2e-7; exp(-87) below and exp(88) above."""
    # Written with comparisons that NaN fails, so that NaN stays NaN.
    value = LOWEST if value < LOWEST else value
    value = HIGHEST if value > HIGHEST else value
    power = floor(value * LOG2_E + HALF)
    rest = value - power * LN2_HIGH - power * LN2_LOW
    series = ((((C0 * rest + C1) * rest + C2) * rest + C3) * rest + C4) * rest + C5
    return (series * rest * rest + rest + ONE) * power_of_two(power)


@device
def widen(source: int, count: int, is_half: int, target: int) -> None:
    """Read `count` values as float32."""
    if is_half:
        for index in range(count):
            put_single(target, index, half(source, index))
    else:
        for index in range(count):
            put_single(target, index, single(source, index))


@device
def narrow(source: int, count: int, is_half: int, target: int) -> None:
    """Write `count` float32 values, rounded to bfloat16 where `is_half`."""
    if is_half:
        for index in range(count):
            put_half(target, index, single(source, index))
    else:
        for index in range(count):
            put_single(target, index, single(source, index))
