"""Whose time it is on the device: serving or training. Plain threading, no torch."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Side = Literal["serving", "training"]


@dataclass(eq=False, slots=True)
class _Claim:
    """One thread's wish for the device, and then its hold on it."""

    side: Side
    thread: int
    """`threading.get_ident()` of the thread that asked."""
    since: float = 0.0
    """When it was granted, on the clock of `Turns`, in seconds."""


class Turns:
    """A fair lock on the device: turns are granted in the order in which they were asked for.

    Any number of serving threads may ask (an engine's loop, an encoder's batcher); one thread trains. A serving
    turn lasts one step. A training turn lasts a micro step, but within it training calls `give_way` at every
    boundary: when serving waits and the quantum is over, training goes to the end of the queue. So serving waits
    for at most a quantum and the work between two boundaries, training waits for at most one turn of each serving
    thread, and with nobody else in the queue either side keeps the device.
    """

    def __init__(self, quantum_seconds: float, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """`quantum_seconds`: how long training may hold the device while serving waits; 0 gives way at every
        boundary. Raises ValueError when it is negative or not finite."""
        if not (math.isfinite(quantum_seconds) and quantum_seconds >= 0):
            raise ValueError(f"quantum_seconds must be finite and at least 0, not {quantum_seconds}")
        self.quantum_seconds = quantum_seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: deque[_Claim] = deque()
        self._holder: _Claim | None = None

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
    def training(self) -> Iterator[None]:
        """Hold the device for one micro step of training; blocks until it is training's turn.

        Raises RuntimeError when this thread holds a turn already, or another thread trains.
        """
        claim = _Claim("training", threading.get_ident())
        self._take(claim)
        try:
            yield
        finally:
            self._release(claim)

    def is_due(self) -> bool:
        """Whether training must hand over at its next boundary: serving waits and the quantum is over.

        Once true it stays true until training hands over. Raises RuntimeError when training holds no turn.
        """
        with self._changed:
            claim = self._training_claim()
            return bool(self._queue) and self._clock() - claim.since >= self.quantum_seconds

    def give_way(self) -> None:
        """Hand over if that is due, and return when it is training's turn again.

        Called at boundaries of the work within `training()`. It may be another thread than the one that entered
        `training()`: on CUDA, autograd runs a backward pass in a thread of its own while the first one waits.
        Raises RuntimeError when training holds no turn.
        """
        with self._changed:
            claim = self._training_claim()
            if not self._queue or self._clock() - claim.since < self.quantum_seconds:
                return
            self._holder = None
            self._queue.append(claim)
            self._changed.notify_all()
            self._wait_in_queue(claim)

    def _training_claim(self) -> _Claim:
        if self._holder is None or self._holder.side != "training":
            raise RuntimeError("only training gives way, and only while it holds a turn")
        return self._holder

    def _take(self, claim: _Claim) -> None:
        with self._changed:
            self._refuse_misuse(claim)
            self._queue.append(claim)
            self._wait_in_queue(claim)

    def _refuse_misuse(self, claim: _Claim) -> None:
        if self._holder is not None and self._holder.thread == claim.thread:
            raise RuntimeError(f"this thread holds a {self._holder.side} turn already: turns do not nest")
        others = (self._holder, *self._queue)
        if claim.side == "training" and any(other is not None and other.side == "training" for other in others):
            raise RuntimeError("another thread trains on this device: one training at a time")

    def _wait_in_queue(self, claim: _Claim) -> None:
        """Wait, under the lock, until the device is free and `claim` is first; then hold it."""
        try:
            while self._holder is not None or self._queue[0] is not claim:
                self._changed.wait()
        except BaseException:  # an interrupt of the main thread: whoever stands behind must not wait for us
            self._queue.remove(claim)
            self._changed.notify_all()
            raise
        self._queue.popleft()
        self._holder = claim
        claim.since = self._clock()

    def _release(self, claim: _Claim) -> None:
        with self._changed:
            # Training that was interrupted while it gave way leaves `training()` without holding the device.
            if self._holder is claim:
                self._holder = None
                self._changed.notify_all()
