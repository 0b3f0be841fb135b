"""The machine that figures were taken on: its name, and the limits that no program can pass, measured."""

import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.timing import timed

BUSY_LOAD = 0.5
"""Processes that want to run, for each core: above it the figures tell of the others' work as well."""
TRIES = 5
"""Of each limit; the median counts."""
READ_BYTES = 512 * 2**20
"""Far more than a processor's caches hold."""
SQUARE = 2048
"""Rows and columns of the matrices that are multiplied: enough work that starting it costs nothing."""


def describe(dtype: torch.dtype) -> dict[str, Any]:
    """What a figure must be read with; says so on the console where others are at work."""
    load = os.getloadavg()[0]
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "dtype": str(dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_at_start": round(load, 2),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if load > BUSY_LOAD * (os.cpu_count() or 1):
        print("this machine is busy with other work: the figures tell of that as well")
    return machine


def memory_bytes_per_second() -> float:
    """How fast all threads together read memory that no cache holds."""
    numbers = torch.ones(READ_BYTES // 4)
    return READ_BYTES / _median_seconds(lambda: numbers.sum())


def gemm_flops_per_second(dtype: torch.dtype) -> float:
    """Of a large square product: two operations for each of its SQUARE ** 3 terms."""
    left, right = torch.randn(SQUARE, SQUARE).to(dtype), torch.randn(SQUARE, SQUARE).to(dtype)
    return 2 * SQUARE**3 / _median_seconds(lambda: left @ right)


def _median_seconds(action: Callable[[], object]) -> float:
    action()
    return statistics.median(timed(action) for _ in range(TRIES))


def _processor() -> str:
    """The model's name where the system tells it (Linux), else the architecture."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {platform.machine()}" if names else platform.machine()
