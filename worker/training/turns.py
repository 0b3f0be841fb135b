"""Whose time it is on the device: serving or training. Plain threading, no torch."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from worker.training.pace import FixedQuantum, Pace

Side = Literal["serving", "training"]

SLICE_SECONDS = 0.25
"""How long one training keeps the device while only others train. A handover costs well under a millisecond, and
nobody reads along here as they do with tokens."""
REST_SECONDS = 0.002
"""Serving that has not asked again for so long has nothing to do: a rationed training may go on. From one step to the
next an engine's thread takes some ten microseconds, or what another thread holds Python's lock for."""


@dataclass(eq=False, slots=True)
class Share:
    """What one training has had of the device."""

    held_seconds: float = 0.0
    """Of all its turns that are over."""
    finish: float = 0.0
    """Its place in the order of trainings, on their common clock (see `Turns`)."""


@dataclass(eq=False, slots=True)
class _Claim:
    """One thread's wish for the device, and then its hold on it."""

    side: Side
    thread: int
    """`threading.get_ident()` of the thread that asked."""
    share: Share = field(default_factory=Share)
    """Of the training."""
    start: float = 0.0
    """Where it comes among trainings that wait."""
    asked: float = 0.0
    """When it came to the queue, on the clock of `Turns`, in seconds."""
    trained_before: float = 0.0
    """Seconds of training until then, since these turns began."""
    delayed: float = 0.0
    """Seconds of training between its question and its grant."""
    since: float = 0.0
    """When it was granted."""


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
    """

    def __init__(
        self,
        quantum_seconds: float = 0.0,
        *,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`quantum_seconds`: how long training may hold the device while serving waits; 0 gives way at every
        boundary. With a `pace` it says so instead. Raises ValueError when the quantum is negative or not finite."""
        self._pace: Pace = FixedQuantum(quantum_seconds) if pace is None else pace
        self._clock = clock
        self._changed = threading.Condition()
        self._serving: deque[_Claim] = deque()
        self._training: list[_Claim] = []
        self._ahead = 0
        """How many of those that wait to serve come before the next training."""
        self._holder: _Claim | None = None
        self._trained = 0.0
        """Seconds of all training turns that are over."""
        self._served_at = -math.inf
        """When the last serving turn was over."""
        self._next_start = 0.0
        """The trainings' common clock: the start of the turn that was granted last."""

    @property
    def quantum_seconds(self) -> float:
        """How long a training turn lasts at present while serving waits."""
        return self._pace.quantum_seconds

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
            serves = self._serving or (self._holder is not None and self._holder.side == "serving")
            return 0.0 if serves else self._clock() - self._served_at

    @property
    def trained_seconds(self) -> float:
        """How long training has held the device until now, all trainings together."""
        with self._changed:
            return self._trained_until(self._clock())

    def waiting(self) -> int:
        """Threads that wait for their turn."""
        with self._changed:
            return len(self._serving) + len(self._training)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Hold the device for one step of serving; blocks until it is this thread's turn.

        Raises RuntimeError when this thread holds a turn already: it would wait for itself.
        """
        claim = _Claim("serving", threading.get_ident())
        self._take(claim)
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
        claim = _Claim("training", threading.get_ident(), share or Share())
        self._take(claim)
        try:
            yield
        finally:
            self._release(claim)

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

    def _held_training(self) -> _Claim:
        if self._holder is None or self._holder.side != "training":
            raise RuntimeError("only training gives way, and only while it holds a turn")
        return self._holder

    def _is_due(self, claim: _Claim) -> bool:
        held = self._clock() - claim.since
        if self._serving:
            return held >= self._pace.quantum_seconds
        return bool(self._training) and held >= SLICE_SECONDS

    def _take(self, claim: _Claim) -> None:
        with self._changed:
            if self._holder is not None and self._holder.thread == claim.thread:
                raise RuntimeError(f"this thread holds a {self._holder.side} turn already: turns do not nest")
            self._wait_for_turn(claim)

    def _wait_for_turn(self, claim: _Claim) -> None:
        """Stand in the queue, under the lock, until it is the claim's turn; then hold the device."""
        self._enter(claim)
        try:
            while self._holder is not None or self._next() is not claim:
                self._changed.wait(self._patience())
        except BaseException:  # an interrupt of the main thread: whoever stands behind must not wait for us
            self._leave(claim)
            self._changed.notify_all()
            raise
        self._leave(claim)
        self._grant(claim)

    def _enter(self, claim: _Claim) -> None:
        now = self._clock()
        claim.asked, claim.trained_before = now, self._trained_until(now)
        if claim.side == "serving":
            self._serving.append(claim)
            return
        claim.start = max(claim.share.finish, self._next_start)
        if not self._training:
            self._ahead = len(self._serving)
        self._training.append(claim)

    def _leave(self, claim: _Claim) -> None:
        if claim.side == "training":
            self._training.remove(claim)
            return
        if self._serving.index(claim) < self._ahead:
            self._ahead -= 1
        self._serving.remove(claim)

    def _next(self) -> _Claim | None:
        """Whose turn it is once the device is free; None while a rationed training waits whether serving goes on."""
        training = min(self._training, key=lambda claim: claim.start, default=None)
        if training is None:
            return self._serving[0] if self._serving else None
        if not self._serving:
            return training if self._pace.may_train() or self._rested() <= 0 else None
        return self._serving[0] if self._ahead or not self._pace.may_train() else training

    def _patience(self) -> float | None:
        """How long to wait at most for a change: nothing says that serving does not come back."""
        undecided = self._holder is None and not self._serving and bool(self._training)
        return max(0.0, self._rested()) if undecided else None

    def _rested(self) -> float:
        """Seconds until serving counts as idle."""
        return self._served_at + REST_SECONDS - self._clock()

    def _grant(self, claim: _Claim) -> None:
        self._holder = claim
        claim.since = self._clock()
        claim.delayed = self._trained - claim.trained_before
        if claim.side == "training":
            self._next_start = claim.start

    def _release(self, claim: _Claim) -> None:
        with self._changed:
            # Training that was interrupted while it gave way leaves `training()` without holding the device.
            if self._holder is claim:
                self._end(claim)

    def _end(self, claim: _Claim) -> None:
        """The claim's turn is over; the device is free."""
        now = self._clock()
        held = now - claim.since
        self._holder = None
        if claim.side == "serving":
            self._served_at = now
            self._pace.served(held, claim.delayed)
        else:
            self._trained += held
            self._ahead = len(self._serving)
            claim.share.held_seconds += held
            claim.share.finish = claim.start + held
            if self._serving:
                self._pace.trained(now - max(claim.since, self._serving[0].asked))
        self._changed.notify_all()

    def _trained_until(self, now: float) -> float:
        holds = self._holder is not None and self._holder.side == "training"
        return self._trained + (now - self._holder.since if holds and self._holder is not None else 0.0)
