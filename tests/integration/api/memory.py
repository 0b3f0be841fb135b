"""How much this process grows, in which the test's server runs (Linux)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESET_PEAK = "5"
"""Sets the peak back to what is in use now (proc(5), clear_refs)."""


@contextmanager
def grows_less_than(growth: int) -> Iterator[None]:
    """Fails if the process has at any moment within the block used `growth` bytes more than before it."""
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = _status_bytes("VmRSS")
    yield
    assert _status_bytes("VmHWM") - before < growth


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kib) * 1024
