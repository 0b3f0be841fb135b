"""When work stands still, and when it only looks so."""

import subprocess
import sys
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.stall import MAX_POLLS_COUNTED, STALLED_EXIT, ProgressSource, StallWatch

LIMIT = 10.0
"""Seconds; the watch then polls every second."""
WAIT_SECONDS = 30.0
"""For what must happen: far longer than it takes, so that only a hang fails."""


@dataclass
class Work:
    """Work that is what a test says it is."""

    busy: bool = True
    done: int = 0

    def source(self, name: str = "engine", limit_seconds: float | None = None) -> ProgressSource:
        return ProgressSource(name, lambda: self.busy, lambda: self.done, limit_seconds)


class Polled:
    """A watch without its thread: polled on time, at seconds 0, 1, 2, …"""

    def __init__(self, *sources: ProgressSource) -> None:
        self.watch = StallWatch(LIMIT, pytest.fail)
        for source in sources:
            self.watch.add(source)
        self.now = 0.0
        assert self.watch.stalled(self.now) is None

    def first_stall(self, *, within: float) -> float | None:
        """Seconds from now until a source is reported; None if none is `within` so many."""
        start = self.now
        while self.now - start < within:
            self.now += self.watch.poll_seconds
            if self.watch.stalled(self.now) is not None:
                return self.now - start
        return None


def test_work_that_stands_still_for_the_limit_is_a_stall() -> None:
    work = Work()
    polled = Polled(work.source("engine of a model"))

    assert polled.first_stall(within=LIMIT - 1) is None
    polled.now += 1
    assert polled.watch.stalled(polled.now) == "engine of a model"


def test_any_progress_begins_the_limit_anew() -> None:
    work = Work()
    polled = Polled(work.source())
    for _ in range(5):
        assert polled.first_stall(within=LIMIT - 1) is None
        work.done += 1

    assert polled.first_stall(within=2 * LIMIT) == LIMIT + 1, "the poll that sees the progress begins the limit"


def test_idle_work_is_no_stall_and_its_limit_begins_when_it_gets_busy() -> None:
    work = Work(busy=False)
    polled = Polled(work.source())
    assert polled.first_stall(within=10 * LIMIT) is None
    work.busy = True
    assert polled.first_stall(within=LIMIT - 1) is None
    work.busy = False
    assert polled.first_stall(within=1) is None
    work.busy = True

    assert polled.first_stall(within=2 * LIMIT) == LIMIT + 1


def test_a_source_may_have_a_limit_of_its_own() -> None:
    assert Polled(Work().source(limit_seconds=3 * LIMIT)).first_stall(within=5 * LIMIT) == 3 * LIMIT
    assert Polled(Work().source(limit_seconds=2.0)).first_stall(within=5 * LIMIT) == 2.0


def test_progress_of_one_source_does_not_hide_that_another_stands_still() -> None:
    moving, stuck = Work(), Work()
    polled = Polled(moving.source("moving"), stuck.source("stuck"))
    for _ in range(int(LIMIT) - 1):
        moving.done += 1
        assert polled.first_stall(within=1) is None
    moving.done += 1
    polled.now += 1

    assert polled.watch.stalled(polled.now) == "stuck"


def test_a_removed_source_is_forgotten_and_its_namesake_is_not() -> None:
    """A model that is evicted and loaded again has two sources of one name for a moment."""
    old, new = Work().source(), Work().source()
    polled = Polled(old)
    assert polled.first_stall(within=LIMIT - 1) is None
    polled.watch.add(new)
    polled.watch.remove(old)
    polled.watch.remove(old)

    assert polled.first_stall(within=2 * LIMIT) == LIMIT + 1


@given(st.floats(min_value=LIMIT, max_value=1e6))
def test_a_suspended_process_is_no_stall(suspended_seconds: float) -> None:
    """Symptom: SIGSTOP, or a laptop that sleeps; cause: the clock went on and the work could not."""
    polled = Polled(Work().source())
    for _ in range(4):
        polled.now += suspended_seconds
        assert polled.watch.stalled(polled.now) is None

    assert polled.first_stall(within=LIMIT) == LIMIT - 4 * MAX_POLLS_COUNTED


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.booleans()), max_size=200))
def test_a_stall_is_reported_exactly_when_the_counted_time_reaches_the_limit(
    polls: list[tuple[float, bool, bool]],
) -> None:
    """Against a plain model: seconds since the first poll that saw this count while busy, late polls shortened."""
    work = Work()
    polled = Polled(work.source())
    stuck, was_busy = 0.0, True
    for passed, busy, progresses in polls:
        work.busy = busy
        work.done += progresses
        polled.now += passed
        stuck = stuck + min(passed, MAX_POLLS_COUNTED) if busy and was_busy and not progresses else 0.0
        was_busy = busy
        # Near the limit, rounding of the clock decides.
        if abs(stuck - LIMIT) > 1e-6:
            assert (polled.watch.stalled(polled.now) is not None) == (stuck > LIMIT)
        else:
            polled.watch.stalled(polled.now)


def test_calls_are_progress_and_their_absence_is_a_stall() -> None:
    """As a training's `check` is watched."""
    calls: list[str] = []
    polled = Polled()
    with polled.watch.watch_calls("training", lambda: calls.append("check")) as check:
        for _ in range(5):
            check()
            assert polled.first_stall(within=LIMIT - 1) is None
        assert polled.first_stall(within=LIMIT) == 2

    assert calls == ["check"] * 5
    assert polled.first_stall(within=3 * LIMIT) is None


def test_what_a_watched_call_raises_ends_the_watching() -> None:
    polled = Polled()

    def cancelled() -> None:
        raise InterruptedError("cancelled")

    with (
        pytest.raises(InterruptedError, match="cancelled"),
        polled.watch.watch_calls("training", cancelled) as check,
    ):
        check()
    assert polled.first_stall(within=3 * LIMIT) is None


def test_the_thread_reports_a_stall_once_and_ends() -> None:
    reports: list[str] = []
    reported = threading.Event()

    def on_stall(name: str) -> None:
        reports.append(name)
        reported.set()

    watch = StallWatch(0.05, on_stall)
    watch.add(Work().source("engine"))
    watch.start()
    assert reported.wait(WAIT_SECONDS)
    watch.stop()

    assert reports == ["engine"]


def test_a_watch_that_saw_nothing_can_be_stopped() -> None:
    watch = StallWatch(1000.0, pytest.fail)
    watch.start()
    watch.stop()

    assert not any(thread.name == "stall-watch" for thread in threading.enumerate())


@pytest.mark.parametrize("stall_seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_could_never_be_met_is_refused(stall_seconds: float) -> None:
    with pytest.raises(ValueError, match="stall_seconds"):
        StallWatch(stall_seconds, pytest.fail)


@pytest.mark.parametrize(
    ("stop_renewing", "said"),
    [
        ("lambda: print('renewing stopped', flush=True)", "renewing stopped"),
        ("lambda: 1 / 0", "ZeroDivisionError"),
        ("threading.Event().wait", "threading.py"),
    ],
)
def test_a_stalled_process_ends_whatever_giving_up_its_leases_does(stop_renewing: str, said: str) -> None:
    """A Redis client that raises, or hangs, is in the way of neither the stacks nor the end."""
    ended = run_program(f"""
import atexit
atexit.register(print, "never said")
exit_stalled("engine of a model", {stop_renewing})
""")

    assert ended.returncode == STALLED_EXIT == 70
    assert said in ended.stdout + ended.stderr
    assert "engine of a model" in ended.stderr
    assert "most recent call first" in ended.stderr
    assert "never said" not in ended.stdout


def test_a_stalled_process_ends_even_if_its_log_hangs() -> None:
    """What hung may hold the log's lock: a pipe that nobody reads blocks whoever writes to it."""
    ended = run_program("""
import logging
logging.basicConfig()
held = threading.Event()

def hold() -> None:
    with logging.getLogger().handlers[0].lock:
        held.set()
        threading.Event().wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
exit_stalled("engine", lambda: None)
""")

    assert ended.returncode == STALLED_EXIT
    assert "in hold" in ended.stderr, "the stacks show who holds the lock"


def run_program(program: str) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, which must do without torch."""
    imports = "import sys, threading\nfrom worker.stall import exit_stalled\nassert 'torch' not in sys.modules\n"
    return subprocess.run(
        [sys.executable, "-c", imports + program], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
