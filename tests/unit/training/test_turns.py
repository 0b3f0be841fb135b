"""The turns between serving and training: exclusion, fairness, the quantum, and what misuse does."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.training.claim import Share
from worker.training.pace import OneAtATime
from worker.training.turns import SLICE_SECONDS, Turns

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
    while turns.waiting() < length:  # nothing is notified when a thread comes, so look again
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


def test_trainings_share_by_time_while_serving_waits() -> None:
    """Serving comes between any two turns of training, and the next one is for the training that has had least."""
    clock = Clock()
    turns, device = Turns(0.0, clock=clock), Device()

    def train(name: str, seconds: float, count: int) -> None:
        share = Share()
        for _ in range(count):
            with turns.training(share):
                device.use(name)
                clock.now += seconds

    def serve() -> None:
        for _ in range(9):
            with turns.serving():
                device.use("serving")

    with ThreadPoolExecutor(3) as pool:
        with turns.serving():
            works = [pool.submit(train, "long", 2.0, 4), pool.submit(train, "short", 1.0, 8)]
            wait_for_queue(turns, 2)
            works.append(pool.submit(serve))
            wait_for_queue(turns, 3)
        for work in works:
            work.result(JOIN_SECONDS)
    first = [user for user in device.users if user != "serving"][:9]
    assert abs(2 * first.count("long") - first.count("short")) <= 2, f"two seconds each, in all: {first}"


def test_trainings_alone_alternate_slice_by_slice() -> None:
    """With nobody to serve a boundary is a handover only when another training waits and a slice is over."""
    clock = Clock()
    turns, device = Turns(0.0, clock=clock), Device()

    def train_too() -> None:
        with turns.training():
            device.use("second")

    with ThreadPoolExecutor(1) as pool, turns.training():
        future = pool.submit(train_too)
        wait_for_queue(turns, 1)
        clock.now = SLICE_SECONDS - 0.01
        turns.give_way()
        device.use("first")
        clock.now = SLICE_SECONDS
        turns.give_way()
        future.result(JOIN_SECONDS)
    assert device.users == ["first", "second"]


def test_a_new_training_has_nothing_to_catch_up_on() -> None:
    """One that comes when another has had an hour shares from now on, instead of taking an hour for itself."""
    clock = Clock()
    turns, device = Turns(0.0, clock=clock), Device()
    old, new = Share(), Share()
    with turns.training(old):
        clock.now += 3600.0

    def train(name: str, share: Share) -> None:
        for _ in range(3):
            with turns.training(share):
                device.use(name)
                clock.now += 1.0

    with ThreadPoolExecutor(2) as pool:
        with turns.serving():
            works = [pool.submit(train, "old", old), pool.submit(train, "new", new)]
            wait_for_queue(turns, 2)
        for work in works:
            work.result(JOIN_SECONDS)
    assert device.users.index("old") < 5, f"the old one waits for a turn or two at most: {device.users}"
    assert (old.held_seconds, new.held_seconds) == (3603.0, 3.0)


class Ration(OneAtATime):
    """A pace whose training has to wait until it is told otherwise; it notes what it is told."""

    def __init__(self) -> None:
        self.quantum_seconds = 0.0
        self.pieces_are_too_long = True
        self.allowed = False
        self.notes: list[tuple[str, float, float]] = []

    def may_train(self) -> bool:
        return self.allowed

    def trained(self, contended_seconds: float) -> None:
        self.notes.append(("trained", contended_seconds, 0.0))

    def served(self, held_seconds: float, delayed_seconds: float) -> None:
        self.notes.append(("served", held_seconds, delayed_seconds))

    def pieces_changed(self) -> None:
        self.notes.append(("pieces_changed", 0.0, 0.0))


def test_a_rationed_training_waits_while_serving_goes_on() -> None:
    """A thread that serves step after step is not interrupted, although it holds nothing from one to the next."""
    pace = Ration()
    turns, device = Turns(pace=pace), Device()

    def train() -> None:
        with turns.training():
            device.use("training")

    with ThreadPoolExecutor(1) as pool:
        with turns.serving():
            future = pool.submit(train)
            wait_for_queue(turns, 1)
        for step in range(20):
            with turns.serving():
                device.use("serving")
                pace.allowed = step == 15
        future.result(JOIN_SECONDS)
    assert device.users[:16] == ["serving"] * 16
    assert device.users[16] == "training"


def test_a_rationed_training_has_the_device_when_serving_rests() -> None:
    """It needs no leave then, and nobody has to wake it."""
    turns = Turns(pace=Ration())
    with turns.serving():
        pass
    started = time.monotonic()
    with turns.training():
        assert time.monotonic() - started < JOIN_SECONDS


def test_the_pace_is_told_what_each_side_had() -> None:
    """Serving's own time, what it waited for training, and for how long training was waited for."""
    clock, pace = Clock(), Ration()
    pace.quantum_seconds, pace.allowed = 3.0, True
    turns = Turns(pace=pace, clock=clock)

    def serve() -> None:
        with turns.serving():
            clock.now += 0.5

    with ThreadPoolExecutor(1) as pool, turns.training():
        clock.now = 2.0  # nobody waits for these two seconds
        future = pool.submit(serve)
        wait_for_queue(turns, 1)
        clock.now = 3.0
        turns.give_way()
        future.result(JOIN_SECONDS)
        assert pace.notes == [("trained", 1.0, 0.0), ("served", 0.5, 1.0)]
        clock.now = 5.0
        assert turns.trained_seconds == 4.5
    assert turns.trained_seconds == 4.5


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
