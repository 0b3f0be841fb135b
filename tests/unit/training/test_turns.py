"""The turns between serving and training: exclusion, fairness, the quantum, and what misuse does."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.training.turns import Turns

JOIN_SECONDS = 20
"""Far more than any of these threads needs: a test that waits this long has found a deadlock."""


class Clock:
    """A clock that moves when it is told to, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Device:
    """Notices two users at once, and notes in what order they came."""

    def __init__(self) -> None:
        self.users: list[str] = []
        self._busy = threading.Lock()

    def use(self, name: str) -> None:
        assert self._busy.acquire(blocking=False), f"{name} met another user of the device"
        self.users.append(name)
        self._busy.release()


def run_together(*works: Callable[[], None]) -> None:
    """Run each in a thread, all starting at once; re-raise what any of them raises."""
    start = threading.Barrier(len(works))

    def started(work: Callable[[], None]) -> None:
        start.wait(JOIN_SECONDS)
        work()

    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(started, work) for work in works]:
            future.result(JOIN_SECONDS)


def wait_for_queue(turns: Turns, length: int) -> None:
    """Return when `length` threads stand in the queue; the caller holds the device meanwhile."""
    deadline = time.monotonic() + JOIN_SECONDS
    while len(turns._queue) < length:  # nothing is notified when a thread comes, so look again
        assert time.monotonic() < deadline, f"{length} threads never came to wait"
        os.sched_yield()


@given(
    serving_threads=st.integers(1, 3),
    serving_turns=st.integers(1, 15),
    micro_steps=st.integers(1, 6),
    boundaries=st.integers(0, 6),
    quantum=st.sampled_from([0.0, 0.0002]),
)
@settings(max_examples=25, deadline=None)
def test_nobody_meets_and_nobody_starves(
    serving_threads: int, serving_turns: int, micro_steps: int, boundaries: int, quantum: float
) -> None:
    """Whatever the mix, each use of the device is alone, all work is done, and training that gives way gets the
    device back after at most one turn of each serving thread."""
    turns, device = Turns(quantum), Device()

    def serve(name: str) -> None:
        for _ in range(serving_turns):
            with turns.serving():
                device.use(name)

    def train() -> None:
        for _ in range(micro_steps):
            with turns.training():
                device.use("training")
                for _ in range(boundaries):
                    before = len(device.users)
                    turns.give_way()
                    between = device.users[before:]
                    assert len(set(between)) == len(between), f"served twice while training waited: {between}"
                    device.use("training")

    servers = [lambda name=f"serving-{index}": serve(name) for index in range(serving_threads)]
    run_together(train, *servers)
    assert device.users.count("training") == micro_steps * (1 + boundaries)
    for index in range(serving_threads):
        assert device.users.count(f"serving-{index}") == serving_turns


def test_with_quantum_zero_training_and_serving_alternate() -> None:
    """While both want the device all the time, they take turns one by one."""
    turns, device = Turns(0.0), Device()

    def serve() -> None:
        for _ in range(5):
            with turns.serving():
                device.use("serving")

    with ThreadPoolExecutor(1) as pool, turns.training():
        future = pool.submit(serve)
        for _ in range(5):
            wait_for_queue(turns, 1)
            device.use("training")
            turns.give_way()
        future.result(JOIN_SECONDS)
    assert device.users == ["training", "serving"] * 5


def test_training_keeps_the_device_until_its_quantum_is_over() -> None:
    """Serving that waits gets the device at the first boundary after the quantum, not before."""
    clock = Clock()
    turns, device = Turns(0.5, clock=clock), Device()

    def serve() -> None:
        with turns.serving():
            device.use("serving")

    with ThreadPoolExecutor(1) as pool, turns.training():
        future = pool.submit(serve)
        wait_for_queue(turns, 1)
        clock.now = 0.49
        turns.give_way()
        assert device.users == [], "the quantum was not over"
        clock.now = 0.5
        turns.give_way()
        assert device.users == ["serving"]
        future.result(JOIN_SECONDS)


def test_a_new_turn_has_a_new_quantum() -> None:
    """The quantum counts from when training got the device, so a handover starts it again."""
    clock = Clock()
    turns = Turns(1.0, clock=clock)
    served: list[float] = []

    def serve() -> None:
        with turns.serving():
            served.append(clock.now)

    with ThreadPoolExecutor(1) as pool, turns.training():
        for handover_at in (1.0, 2.0):
            future = pool.submit(serve)
            wait_for_queue(turns, 1)
            clock.now = handover_at - 0.1
            assert not turns.is_due()
            clock.now = handover_at
            turns.give_way()
            future.result(JOIN_SECONDS)
    assert served == [1.0, 2.0]


def test_without_serving_training_never_gives_way() -> None:
    """With nobody in the queue a boundary returns at once, however long training has had the device."""
    clock = Clock()
    turns = Turns(0.0, clock=clock)
    with turns.training():
        clock.now = 1_000.0
        assert not turns.is_due()
        turns.give_way()
        with pytest.raises(RuntimeError, match="training turn already"), turns.serving():
            pass


def test_turns_are_granted_in_the_order_of_asking() -> None:
    """Three serving threads that queue behind training are served first come, first served."""
    turns, device = Turns(0.0), Device()

    def serve(name: str) -> None:
        with turns.serving():
            device.use(name)

    with ThreadPoolExecutor(3) as pool, turns.training():
        for position, name in enumerate("cab", start=1):
            pool.submit(serve, name)
            wait_for_queue(turns, position)
        turns.give_way()
        assert device.users == ["c", "a", "b"]


@pytest.mark.parametrize("side", ["serving", "training"])
def test_an_error_in_a_turn_ends_it(side: str) -> None:
    """The device is free again after an exception, which goes through unchanged."""
    turns = Turns(0.0)
    error = ZeroDivisionError("in the turn")
    with pytest.raises(ZeroDivisionError) as raised, getattr(turns, side)():
        raise error
    assert raised.value is error
    with turns.serving():
        pass
    with turns.training():
        turns.give_way()


@pytest.mark.parametrize("outer", ["serving", "training"])
@pytest.mark.parametrize("inner", ["serving", "training"])
def test_turns_do_not_nest(outer: str, inner: str) -> None:
    """A thread that asks for a turn within its turn would wait for itself: it is told instead."""
    turns = Turns(0.0)
    expected = pytest.raises(RuntimeError, match=f"holds a {outer} turn already")
    with getattr(turns, outer)(), expected, getattr(turns, inner)():
        pass
    with turns.serving():
        pass  # the device is free again


def test_only_one_thread_trains() -> None:
    """A second training is refused, not queued, both while the first works and while it gives way."""
    turns = Turns(0.0)
    refused: list[str] = []

    def train_too() -> None:
        with pytest.raises(RuntimeError, match="one training at a time"), turns.training():
            pass
        refused.append("while it works")

    def serve() -> None:
        with turns.serving():
            wait_for_queue(turns, 1)  # training stands in the queue now
            with ThreadPoolExecutor(1) as other:
                other.submit(train_too).result(JOIN_SECONDS)

    with ThreadPoolExecutor(1) as pool, turns.training():
        pool.submit(train_too).result(JOIN_SECONDS)
        future = pool.submit(serve)
        wait_for_queue(turns, 1)
        turns.give_way()
        future.result(JOIN_SECONDS)
    assert len(refused) == 2


def test_giving_way_without_a_training_turn_is_misuse() -> None:
    """A boundary outside of a training turn means that the device is used without asking."""
    turns = Turns(0.0)
    with pytest.raises(RuntimeError, match="only training gives way"):
        turns.give_way()
    with turns.serving(), pytest.raises(RuntimeError, match="only training gives way"):
        turns.is_due()


def test_autograds_thread_may_give_way() -> None:
    """On CUDA the backward pass runs in another thread than the one that entered the turn."""
    turns, device = Turns(0.0), Device()

    def serve() -> None:
        with turns.serving():
            device.use("serving")

    with ThreadPoolExecutor(2) as pool, turns.training():
        server = pool.submit(serve)
        wait_for_queue(turns, 1)
        pool.submit(turns.give_way).result(JOIN_SECONDS)
        server.result(JOIN_SECONDS)
        assert device.users == ["serving"]
        turns.give_way()  # and training holds the device again


def test_an_interrupted_wait_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while training waits for its turn back: serving goes on, and no one is left waiting."""
    turns = Turns(0.0)
    holds, let_go = threading.Event(), threading.Event()

    def serve() -> None:
        with turns.serving():
            holds.set()
            assert let_go.wait(JOIN_SECONDS)

    def interrupt(timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool:
        with turns.training():
            future = pool.submit(serve)
            wait_for_queue(turns, 1)
            monkeypatch.setattr(turns._changed, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                turns.give_way()
            monkeypatch.undo()
        assert holds.wait(JOIN_SECONDS)
        let_go.set()
        future.result(JOIN_SECONDS)
    with turns.training():
        assert not turns.is_due()


@pytest.mark.parametrize("quantum", [-0.001, float("nan"), float("inf")])
def test_a_quantum_is_a_length_of_time(quantum: float) -> None:
    with pytest.raises(ValueError, match="quantum_seconds"):
        Turns(quantum)
