"""Whose time it is on the device: serving's, training's or both sides'. Plain threading, no torch."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.training.claim import Claim, Share, are_beside
from worker.training.pace import FixedQuantum, Pace

SLICE_SECONDS = 0.25
"""How long one training keeps the device while only others train. A handover costs well under a millisecond, and
nobody reads along here as they do with tokens."""
REST_SECONDS = 0.002
"""Serving that has not asked again for so long has nothing to do: a rationed training may go on. From one step to the
next an engine's thread takes some ten microseconds, or what another thread holds Python's lock for."""


class Turns:
    """A fair lock on the device, for any number of serving threads and of trainings.

    A serving turn lasts one step. A training turn lasts a micro step, but within it training calls `give_way` at
    every boundary: when serving waits and the quantum is over, it stands in the queue again. Serving threads are
    granted their turns in the order of asking; all trainings together are one more in that order. So serving waits
    for at most a quantum and the work between two boundaries, training waits for at most one turn of each serving
    thread (longer if the pace rations it), and with nobody else in the queue either side keeps the device.

    Among themselves trainings share the device by time: the next turn is for the one that has had least of it. This
    is start-time fair queueing (Goyal, Vin and Cheng, 1996): a training that comes new, or was away for its data,
    begins where the others are, and has nothing to catch up on.

    Where the system divides the device better than turns do (a CPU, by the priorities of threads), both sides may
    hold it at once: a serving turn asked for with `beside`, and training within `beside()`. Serving waits then for no
    boundary of training, only until the pace's `beside_quantum_seconds` are over since serving's last turn.
    """

    def __init__(
        self,
        quantum_seconds: float = 0.0,
        *,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
        processor_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`quantum_seconds`: how long training may hold the device while serving waits; 0 gives way at every
        boundary. With a `pace` it says so instead. `processor_clock`: what the calling thread has had of the
        processor, in seconds. Raises ValueError when the quantum is negative or not finite."""
        self._pace: Pace = FixedQuantum(quantum_seconds) if pace is None else pace
        self._clock = clock
        self._processor_clock = processor_clock
        self._changed = threading.Condition()
        self._serving: deque[Claim] = deque()
        self._training: list[Claim] = []
        self._ahead = 0
        """How many of those that wait to serve come before the next training."""
        self._server: Claim | None = None
        self._trainer: Claim | None = None
        """Who holds the device; both do when they are beside each other."""
        self._trained = 0.0
        """Seconds of all training turns that are over."""
        self._gained = 0.0
        """Seconds of processor time that training has had while serving might compute too."""
        self._gained_before = 0.0
        """Of these, what it had had when the last serving turn was over."""
        self._served_at = -math.inf
        """When the last serving turn was over."""
        self._next_start = 0.0
        """The trainings' common clock: the start of the turn that was granted last."""

    @property
    def quantum_seconds(self) -> float:
        """How long a training turn lasts at present while serving waits."""
        return self._pace.beside_quantum_seconds if self._pace.beside else self._pace.quantum_seconds

    @property
    def pieces_are_too_long(self) -> bool:
        """Whether training's pieces of work are too long for what serving may feel."""
        return self._pace.pieces_are_too_long

    def pieces_changed(self) -> None:
        """Training's pieces of work are of another length from now on."""
        with self._changed:
            self._pace.pieces_changed()

    @property
    def idle_seconds(self) -> float:
        """For how long nothing has been served."""
        with self._changed:
            return 0.0 if self._serving or self._server is not None else self._clock() - self._served_at

    @property
    def trained_seconds(self) -> float:
        """How long training has had the device until now, all trainings together."""
        with self._changed:
            return self._trained_until(self._clock())

    def waiting(self) -> int:
        """Threads that wait for their turn."""
        with self._changed:
            return len(self._serving) + len(self._training)

    @contextmanager
    def serving(self, *, beside: bool = False) -> Iterator[None]:
        """Hold the device for one step of serving; blocks until it is this thread's turn. `beside`: training may
        compute meanwhile, so the step draws nothing from random generators of the process.

        Raises RuntimeError when this thread holds a turn already: it would wait for itself.
        """
        claim = Claim("serving", threading.get_ident())
        self._take(claim, beside)
        try:
            yield
        finally:
            self._release(claim)

    @contextmanager
    def training(self, share: Share | None = None) -> Iterator[None]:
        """Hold the device for one micro step of a training; blocks until it is this training's turn.

        `share` is the training's own, the same for all of its turns; without one the turn counts as another's.
        Raises RuntimeError when this thread holds a turn already.
        """
        claim = Claim("training", threading.get_ident(), share=share or Share())
        self._take(claim)
        try:
            yield
        finally:
            self._release(claim)

    @property
    def knows_beside(self) -> bool:
        """Whether the long parts of training belong into `beside()`."""
        return self._pace.knows_beside

    @property
    def nice(self) -> int:
        """The nice value at which training computes beside serving."""
        return self._pace.nice

    @contextmanager
    def beside(self) -> Iterator[None]:
        """A part of a training turn in which serving may compute too; leaves when no serving does.

        Called in the thread that computes, while training holds a turn; raises RuntimeError when it holds none.
        """
        with self._changed:
            claim = self._held_training()
            claim.beside, claim.counted_at, claim.counted = True, self._clock(), self._processor_clock()
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._count_gain(claim)
                claim.beside = False  # from here on nobody comes beside it
                self._changed.wait_for(lambda: self._server is None or self._trainer is not claim)

    def is_due(self) -> bool:
        """Whether training must hand over at its next boundary: someone waits, and its time is over.

        Once true it stays true until training hands over. Raises RuntimeError when training holds no turn.
        """
        with self._changed:
            return self._is_due(self._held_training())

    def give_way(self) -> None:
        """Hand over if that is due, and return when it is this training's turn again.

        Called at boundaries of the work within `training()`. It may be another thread than the one that entered
        `training()`: on CUDA, autograd runs a backward pass in a thread of its own while the first one waits.
        Raises RuntimeError when training holds no turn.
        """
        with self._changed:
            claim = self._held_training()
            if self._is_due(claim):
                self._end(claim)
                self._wait_for_turn(claim)

    def _held_training(self) -> Claim:
        if self._trainer is None:
            raise RuntimeError("only training gives way, and only while it holds a turn")
        return self._trainer

    def _is_due(self, claim: Claim) -> bool:
        if claim.beside:
            self._count_gain(claim)
        held = self._clock() - claim.since
        if self._serving and not are_beside(self._serving[0], claim):
            return held >= self._pace.quantum_seconds
        return bool(self._training) and held >= SLICE_SECONDS

    def _count_gain(self, claim: Claim) -> None:
        """Of the time beside serving, training has held the device for as long as its thread had a processor."""
        now, had = self._clock(), self._processor_clock()
        elapsed, gained = now - claim.counted_at, had - claim.counted
        claim.counted_at, claim.counted = now, had
        claim.since += max(0.0, elapsed - gained)
        self._gained += gained

    def _take(self, claim: Claim, beside: bool = False) -> None:
        with self._changed:
            claim.beside = beside and self._pace.beside
            for holder in (self._server, self._trainer):
                if holder is not None and holder.thread == claim.thread:
                    raise RuntimeError(f"this thread holds a {holder.side} turn already: turns do not nest")
            self._wait_for_turn(claim)

    def _wait_for_turn(self, claim: Claim) -> None:
        """Stand in the queue, under the lock, until it is the claim's turn; then hold the device."""
        self._enter(claim)
        try:
            while not self._is_turn_of(claim):
                self._changed.wait(self._patience(claim))
        except BaseException:  # an interrupt of the main thread: whoever stands behind must not wait for us
            self._leave(claim)
            self._changed.notify_all()
            raise
        self._leave(claim)
        self._grant(claim)

    def _enter(self, claim: Claim) -> None:
        now = self._clock()
        claim.asked, claim.trained_before = now, self._trained_until(now)
        if claim.side == "serving":
            self._serving.append(claim)
            return
        claim.start = max(claim.share.finish, self._next_start)
        if not self._training:
            self._ahead = len(self._serving)
        self._training.append(claim)

    def _leave(self, claim: Claim) -> None:
        if claim.side == "training":
            self._training.remove(claim)
            return
        if self._serving.index(claim) < self._ahead:
            self._ahead -= 1
        self._serving.remove(claim)

    def _is_turn_of(self, claim: Claim) -> bool:
        return self._may_serve(claim) if claim.side == "serving" else self._may_train(claim)

    def _may_serve(self, claim: Claim) -> bool:
        if self._server is not None or self._serving[0] is not claim:
            return False
        if self._trainer is not None:
            return are_beside(claim, self._trainer) and self._left_of_quantum() <= 0
        training = self._first_training()
        if training is None or are_beside(claim, training):  # that one needs no turn before it
            return True
        return self._ahead > 0 or not self._pace.may_train()

    def _may_train(self, claim: Claim) -> bool:
        if self._trainer is not None or self._first_training() is not claim:
            return False
        waiting = self._serving[0] if self._serving else None
        goes_with = waiting is not None and are_beside(waiting, claim)
        if self._server is not None:
            return are_beside(self._server, claim) and (waiting is None or goes_with)
        if waiting is None:
            return self._pace.may_train() or self._rested() <= 0
        return goes_with or (self._ahead == 0 and self._pace.may_train())

    def _first_training(self) -> Claim | None:
        return min(self._training, key=lambda claim: claim.start, default=None)

    def _patience(self, claim: Claim) -> float | None:
        """How long to wait at most for a change: nothing tells that a quantum is over, or that serving has ended."""
        if claim.side == "serving":
            waits = self._server is None and self._trainer is not None and are_beside(claim, self._trainer)
            return max(0.0, self._left_of_quantum()) if waits else None
        undecided = self._server is None and self._trainer is None and not self._serving
        return max(0.0, self._rested()) if undecided else None

    def _rested(self) -> float:
        """Seconds until serving counts as idle."""
        return self._served_at + REST_SECONDS - self._clock()

    def _left_of_quantum(self) -> float:
        """Seconds that training has before the next step of serving beside it."""
        return self._served_at + self._pace.beside_quantum_seconds - self._clock()

    def _grant(self, claim: Claim) -> None:
        claim.since = claim.counted_at = self._clock()
        if claim.side == "training":
            self._trainer = claim
            self._next_start = claim.start
        else:
            self._server = claim
            claim.delayed = max(0.0, self._trained_until(claim.since) - claim.trained_before)
        if self._server is not None and self._trainer is not None:
            self._server.met = True
        if claim.beside:
            self._changed.notify_all()  # the other side may come too

    def _release(self, claim: Claim) -> None:
        with self._changed:
            # Training that was interrupted while it gave way leaves `training()` without holding the device.
            if claim in (self._server, self._trainer):
                self._end(claim)

    def _end(self, claim: Claim) -> None:
        """The claim's turn is over; the device is free of it."""
        now = self._clock()
        held = now - claim.since
        if claim.side == "serving":
            self._server, self._served_at = None, now
            gained, self._gained_before = self._gained - self._gained_before, self._gained
            if claim.met:
                self._pace.served_beside(held, gained)
            else:
                self._pace.served(held, claim.delayed)
        else:
            self._trainer = None
            self._trained += held
            self._ahead = len(self._serving)
            claim.share.held_seconds += held
            claim.share.finish = claim.start + held
            if self._serving:
                self._pace.trained(now - max(claim.since, self._serving[0].asked))
        self._changed.notify_all()

    def _trained_until(self, now: float) -> float:
        return self._trained + (0.0 if self._trainer is None else now - self._trainer.since)
