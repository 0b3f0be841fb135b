"""Both sides on the device at once: who may compute beside whom, who waits for what, and how it is counted."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.test_turns import JOIN_SECONDS, Clock, run_together, wait_for_queue
from worker.training.beside_pace import LOWEST
from worker.training.claim import Share
from worker.training.low_priority import LowPriorityThread, has_low_priority
from worker.training.turns import SLICE_SECONDS, Turns


class Beside:
    """A pace by which both may compute at once, with a quantum that is told; it notes what it is told."""

    knows_beside = True
    quantum_seconds = 0.0
    pieces_are_too_long = False
    nice = 10

    def __init__(self, beside_quantum_seconds: float = 0.0) -> None:
        self.beside = True
        self.beside_quantum_seconds = beside_quantum_seconds
        self.notes: list[tuple[str, float, float]] = []

    def may_train(self) -> bool:
        return True

    def trained(self, contended_seconds: float) -> None:
        pass

    def pieces_changed(self) -> None:
        pass

    def served(self, held_seconds: float, delayed_seconds: float) -> None:
        self.notes.append(("served", held_seconds, delayed_seconds))

    def served_beside(self, held_seconds: float, gained_seconds: float) -> None:
        self.notes.append(("beside", held_seconds, gained_seconds))


def serve_step(turns: Turns, *, beside: bool = True) -> None:
    with turns.serving(beside=beside):
        pass


def test_serving_comes_beside_training_without_a_boundary() -> None:
    """Training that is beside serving has not to give way: the step is served while it computes."""
    pace = Beside()
    turns = Turns(pace=pace)

    with ThreadPoolExecutor(1) as pool, turns.training(), turns.beside():
        pool.submit(serve_step, turns).result(JOIN_SECONDS)
        assert not turns.is_due()
    assert [kind for kind, _, _ in pace.notes] == ["beside"]


@pytest.mark.parametrize(("serving_beside", "training_beside"), [(True, False), (False, True), (False, False)])
def test_one_that_must_be_alone_waits_for_a_boundary(serving_beside: bool, training_beside: bool) -> None:
    """A step that draws random numbers, or a part of training that changes weights, has the device for itself."""
    pace = Beside()
    turns = Turns(pace=pace)

    def give_way(future: "object") -> None:
        wait_for_queue(turns, 1)
        assert turns.is_due()
        turns.give_way()

    with ThreadPoolExecutor(1) as pool, turns.training():
        if training_beside:
            with turns.beside():
                give_way(future := pool.submit(serve_step, turns, beside=serving_beside))
        else:
            give_way(future := pool.submit(serve_step, turns, beside=serving_beside))
        future.result(JOIN_SECONDS)
    assert [kind for kind, _, _ in pace.notes] == ["served"]


def test_a_pace_may_have_the_next_step_alone() -> None:
    """That is how it finds what serving takes by itself."""
    pace = Beside()
    turns = Turns(pace=pace)

    with ThreadPoolExecutor(1) as pool, turns.training(), turns.beside():
        pace.beside = False
        future = pool.submit(serve_step, turns)
        wait_for_queue(turns, 1)
        turns.give_way()
        future.result(JOIN_SECONDS)
    assert [kind for kind, _, _ in pace.notes] == ["served"]


def test_training_that_is_to_be_alone_waits_for_the_step_beside_it() -> None:
    """At the end of `beside()` nobody is served, and nobody begins to be, until training gives way."""
    turns = Turns(pace=Beside())
    serves, ends, is_over = threading.Event(), threading.Event(), threading.Event()

    def serve() -> None:
        with turns.serving(beside=True):
            serves.set()
            assert ends.wait(JOIN_SECONDS)
            is_over.set()

    with ThreadPoolExecutor(2) as pool, turns.training():
        with turns.beside():
            first = pool.submit(serve)
            assert serves.wait(JOIN_SECONDS)
            second = pool.submit(serve_step, turns)
            wait_for_queue(turns, 1)
            threading.Timer(0.01, ends.set).start()
        assert is_over.is_set()
        assert turns.waiting() == 1, "the second step waits although the first is over"
        assert turns.is_due()
        turns.give_way()
        wait([first, second], JOIN_SECONDS)


def test_training_comes_beside_a_step_that_is_being_served() -> None:
    """After a step for which it stood aside, training goes on beside the next one, within its turn."""
    pace = Beside()
    turns = Turns(pace=pace)
    serves, ends = threading.Event(), threading.Event()

    def serve() -> None:
        with turns.serving():
            pass
        with turns.serving(beside=True):
            serves.set()
            assert ends.wait(JOIN_SECONDS)

    with ThreadPoolExecutor(1) as pool, turns.training(), turns.beside():
        future = pool.submit(serve)
        wait_for_queue(turns, 1)
        turns.give_way()  # returns beside the second step, or before it
        assert serves.wait(JOIN_SECONDS)
        ends.set()
        future.result(JOIN_SECONDS)
    assert [kind for kind, _, _ in pace.notes] == ["served", "beside"]


def test_training_has_the_processors_for_a_quantum_between_two_steps() -> None:
    """The next step begins when that time is over, whatever training is doing, and at once where nobody trains."""
    quantum = 0.05
    turns = Turns(pace=Beside(quantum))

    def serve_twice() -> tuple[float, float]:
        with turns.serving(beside=True):
            ends = time.perf_counter()
        with turns.serving(beside=True):
            return ends, time.perf_counter()

    with ThreadPoolExecutor(1) as pool, turns.training(), turns.beside():
        ended, began = pool.submit(serve_twice).result(JOIN_SECONDS)
    assert began - ended >= quantum
    turns = Turns(pace=Beside(JOIN_SECONDS * 10.0))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(serve_twice).result(JOIN_SECONDS)


def test_a_share_counts_what_training_had_of_the_processor() -> None:
    """Beside serving it may wait for a processor most of the time: that is not time that it held the device."""
    clock, processor, pace = Clock(), Clock(), Beside()
    turns = Turns(pace=pace, clock=clock, processor_clock=processor)
    share = Share()

    def serve() -> None:
        with turns.serving(beside=True):
            clock.now += 3.0
            processor.now += 1.0
            at_boundary.set()
            assert counted.wait(JOIN_SECONDS)

    at_boundary, counted = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool, turns.training(share):
        clock.now += 0.5
        with turns.beside():
            future = pool.submit(serve)
            assert at_boundary.wait(JOIN_SECONDS)
            assert not turns.is_due()
            counted.set()
            future.result(JOIN_SECONDS)
        clock.now += 0.25
    assert pace.notes == [("beside", 3.0, 1.0)]
    assert share.held_seconds == turns.trained_seconds == 1.75


def test_trainings_alternate_beside_serving() -> None:
    """Another training's slice comes at a boundary, also while a step is served beside the first one."""
    clock = Clock()
    turns = Turns(pace=Beside(), clock=clock, processor_clock=clock)
    serves, ends = threading.Event(), threading.Event()
    order: list[str] = []

    def serve() -> None:
        with turns.serving(beside=True):
            serves.set()
            assert ends.wait(JOIN_SECONDS)

    def train_too() -> None:
        with turns.training():
            order.append("second")

    with ThreadPoolExecutor(2) as pool, turns.training(), turns.beside():
        server = pool.submit(serve)
        assert serves.wait(JOIN_SECONDS)
        trainer = pool.submit(train_too)
        wait_for_queue(turns, 1)
        order.append("first")
        clock.now = SLICE_SECONDS
        threading.Timer(0.01, ends.set).start()  # the second one begins alone: it waits for the step
        turns.give_way()
        order.append("first again")
        wait([server, trainer], JOIN_SECONDS)
    assert order == ["first", "second", "first again"]


@given(
    serving=st.lists(st.booleans(), min_size=1, max_size=20),
    parts=st.lists(st.lists(st.booleans(), max_size=5), min_size=1, max_size=5),
    trainings=st.integers(1, 2),
    probes=st.sampled_from([1, 2, 5]),
)
@settings(max_examples=40, deadline=None)
def test_nobody_meets_who_must_be_alone_and_nobody_is_stuck(
    serving: list[bool], parts: list[list[bool]], trainings: int, probes: int
) -> None:
    """Any mix of steps and parts of trainings, beside each other or not: all work is done, steps are served one at a
    time, trainings compute one at a time, and who asked to be alone is."""
    pace = Beside(0.0002)
    turns = Turns(pace=pace)
    here: set[tuple[str, bool]] = set()
    lock = threading.Lock()
    done = {"serving": 0, "training": 0}

    def use(side: str, beside: bool) -> None:
        with lock:
            assert all(beside and other and side != name for name, other in here), (side, beside, here)
            here.add((side, beside))
        os.sched_yield()
        with lock:
            here.remove((side, beside))
            done[side] += 1

    def serve() -> None:
        for number, beside in enumerate(serving):
            pace.beside = number % probes == 0
            with turns.serving(beside=beside):
                use("serving", beside)

    def train() -> None:
        share = Share()
        for part in parts:
            with turns.training(share):
                use("training", False)
                with turns.beside():
                    for _ in part:
                        use("training", True)
                        turns.give_way()
                use("training", False)

    run_together(serve, serve, *[train] * trainings)
    assert done == {
        "serving": 2 * len(serving),
        "training": trainings * sum(2 + len(part) for part in parts),
    }
    assert turns.waiting() == 0


def test_a_low_priority_thread_is_one_of_its_own() -> None:
    """It has the nice value and half of torch's threads, up and down; whoever called goes on as before."""
    assert has_low_priority(), "the tests run on Linux"
    threads, nice = torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def own() -> tuple[int, int, bool]:
        own_nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return own_nice, torch.get_num_threads(), os.sched_getscheduler(0) == os.SCHED_IDLE

    with closing(LowPriorityThread()) as thread:
        for more in (3, 7, 1):
            assert thread.run(own, nice=more) == (nice + more, max(1, threads // 2), False)
        assert thread.run(own, nice=LOWEST)[1:] == (max(1, threads // 2), True)
        with pytest.raises(ZeroDivisionError):
            thread.run(lambda: 1 / 0, nice=LOWEST)
    assert own() == (nice, threads, False)
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == threads


@pytest.mark.parametrize(("of_the_worker", "wanted", "becomes"), [(10, 5, 15), (16, 5, 19)])
def test_a_worker_that_runs_at_a_nice_value_trains_at_a_higher_one(
    of_the_worker: int, wanted: int, becomes: int
) -> None:
    """Symptom: trainings of a worker started by `nice` failed as soon as something was served.
    Cause: the nice value was the thread's own, below that of the worker, and no thread may lower its own.
    Fix: it is so much above the worker's, as far as there are values.
    """

    def own() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def in_a_nice_worker() -> int:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), of_the_worker)
        with closing(LowPriorityThread()) as thread:
            return thread.run(own, nice=wanted)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_a_nice_worker).result() == becomes
