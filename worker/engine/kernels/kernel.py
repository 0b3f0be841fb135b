"""A kernel: Python that numba compiles, called with integers, alone or on the threads that torch computes with."""

import ctypes
import functools
import hashlib
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import torch
from numba import types

log = logging.getLogger(__name__)

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., object])

SAFE_FAST_MATH = {"reassoc", "contract", "nsz"}
"""Sums may be taken in any order and products fused, which vectors need. Not what fast mathematics also means: that
nothing is infinite or NaN, since by these the engine knows broken weights."""

OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": SAFE_FAST_MATH}
"""numpy's errors: a division by zero gives infinity or NaN, and no Python exception, which a thread of OpenMP's could
not raise."""


def device(function: AnyFunction) -> AnyFunction:
    """Marks a function that kernels call: it is compiled into them."""
    return cast("AnyFunction", numba.njit(**OPTIONS)(function))


class Kernel:
    """Compiled when it first runs; the code is kept on disk for the next process."""

    def __init__(self, function: Callable[[int], None]) -> None:
        """`function` gets the address of its arguments, 64 bits each, behind a number that starts at 0: its threads
        `take` their items by it. It returns when there are none left."""
        self._function = function

    def __call__(self, *arguments: int) -> None:
        """Run it in this thread; other threads of Python wait, so only for what takes microseconds."""
        self._alone((ctypes.c_int64 * (len(arguments) + 1))(0, *arguments))

    def in_parallel(self, *arguments: int) -> None:
        """Run it on all threads that torch uses; other threads of Python go on."""
        block = (ctypes.c_int64 * (len(arguments) + 1))(0, *arguments)
        threads = torch.get_num_threads()
        if threads > 1 and (parallel := _openmp()) is not None:
            parallel(self._address, block, threads, 0)
        else:
            self._released(block)

    @functools.cached_property
    def _address(self) -> int:
        return int(self._compiled.address)

    @functools.cached_property
    def _compiled(self) -> Any:
        signature = types.void(types.int64)
        # numba files its code by this name, and would take old code for new after a change to another file than the
        # function's own.
        self._function.__qualname__ = f"{self._function.__name__}_{_sources()}"
        try:
            return numba.cfunc(signature, cache=True, **OPTIONS)(self._function)
        except RuntimeError as error:  # numba finds no folder that it may write to
            log.info("%s is compiled anew in each process: %s", self._function.__name__, error)
            return numba.cfunc(signature, **OPTIONS)(self._function)

    @functools.cached_property
    def _alone(self) -> Callable[[Any], None]:
        # PYFUNCTYPE keeps Python's lock: handing it over and back costs more than the work.
        return cast("Callable[[Any], None]", ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(self._address))

    @functools.cached_property
    def _released(self) -> Callable[[Any], None]:
        return cast("Callable[[Any], None]", ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._address))


@functools.cache
def _sources() -> str:
    """What all of the kernels' source files hold, in 16 digits."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def as_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """A tensor [..., width] as a kernel reads it: itself or a copy, how many rows it has, and from one to the next.

    Columns of a wider matrix are read where they lie. (A plain `reshape` costs as much as a small kernel.)
    """
    width = tensor.shape[-1]
    if tensor.dim() == 3 and tensor.shape[0] == 1 and tensor.stride(2) == 1:
        return tensor, tensor.shape[1], tensor.stride(1)
    if tensor.dim() == 2 and tensor.stride(1) == 1:
        return tensor, tensor.shape[0], tensor.stride(0)
    tensor = tensor.contiguous()
    return tensor, tensor.numel() // width, width


def bits(value: float) -> int:
    """A float32 as a kernel's argument."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """What starts a function on torch's own OpenMP threads; None where torch is built on another library.

    A pool of numba's own would compete with torch's for the same cores. Asked of torch's library, since a process may
    hold several of OpenMP's: the answer is that of the one which torch is linked to. GNU's entry point is LLVM's too.
    """
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        start = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None) if path.exists() else None
        if start is not None:
            start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            start.restype = None
            return cast("Callable[..., None]", start)
    log.info("torch's threads cannot be asked for: kernels run on one")
    return None
