"""A model that hangs for real: the stall watch ends the process. One that is slow, or was suspended, goes on."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.nursery import Child, Nursery, log_of
from tests.chaos.stalled_worker import DONE, FORWARD, FORWARDS, STALL_SECONDS, STOPPED, StalledOptions
from worker.stall import STALLED_EXIT

SUSPENDED_SECONDS = 2 * STALL_SECONDS
PATIENCE_SECONDS = 120.0
"""Until the first forward, on a busy machine."""
POLL_SECONDS = 0.01


@pytest.fixture(scope="module")
def torch_nursery() -> Iterator[Nursery]:
    """Has imported torch, which takes longer than all that these tests wait for."""
    with Nursery("tests.chaos.stalled_worker") as nursery:
        yield nursery


class Watched:
    """The process, once its model is in its first forward."""

    def __init__(self, nursery: Nursery, options: StalledOptions) -> None:
        self.child: Child = nursery.start(options)
        self._log = log_of(self.child.pid, options.folder)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while FORWARD not in self.log:
            assert self.child.is_alive(), self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(POLL_SECONDS)  # a log has no event

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def said(self) -> list[str]:
        """What the program said, without what others wrote."""
        return [line for line in self.log.splitlines() if line in (FORWARD, STOPPED, DONE)]


@contextmanager
def watched(nursery: Nursery, folder: Path, serving: str, pace: str) -> Iterator[Watched]:
    process = Watched(nursery, StalledOptions(str(folder), serving, pace))
    try:
        yield process
    finally:
        process.child.kill()


@pytest.mark.parametrize("serving", ["engine", "encoder"])
def test_a_forward_that_hangs_ends_the_process_with_its_stacks(
    serving: str, torch_nursery: Nursery, tmp_path: Path
) -> None:
    """The leases are given up first; the stacks show the thread that hangs, and where."""
    with watched(torch_nursery, tmp_path, serving, "hangs") as process:
        assert process.child.wait() == STALLED_EXIT
    assert process.said == [FORWARD, STOPPED]
    assert f"tiny {serving} has stood still" in process.log
    stacks = process.log.split("has stood still")[1]
    assert "in hang" in stacks
    assert {"engine": "worker/engine/forward.py", "encoder": "worker/encoders/batcher.py"}[serving] in stacks


@pytest.mark.parametrize("serving", ["engine", "encoder"])
def test_slow_forwards_that_end_are_no_stall(serving: str, torch_nursery: Nursery, tmp_path: Path) -> None:
    """The work as a whole takes longer than the limit, each forward does not."""
    with watched(torch_nursery, tmp_path, serving, "is_slow") as process:
        assert process.child.wait() == 0, process.log
    assert process.said == [FORWARD] * FORWARDS + [DONE], process.log


def test_a_suspended_process_goes_on_where_it_stood(torch_nursery: Nursery, tmp_path: Path) -> None:
    """SIGSTOP for twice the limit, as a laptop that sleeps; after SIGCONT the same forward still runs."""
    with watched(torch_nursery, tmp_path, "engine", "is_slow") as process:
        process.child.signal(signal.SIGSTOP)
        time.sleep(SUSPENDED_SECONDS)  # there is no event in a process that does not run
        process.child.signal(signal.SIGCONT)
        assert process.child.wait() == 0, process.log
    assert process.said == [FORWARD] * FORWARDS + [DONE], process.log
