"""Memory for trainings that run side by side: one that does not fit beside the others waits. Plain Python."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CHECK_SECONDS = 0.5
"""How often a training that waits for room asks whether it must stop: nothing wakes it for that."""
VALUES_A_TOKEN = 14
"""What a layer keeps of a token for its backward pass, in units of its hidden and its intermediate size together.
Measured with SmolLM2 and LoRA with dropout on all linear layers: 13.5; on queries and values alone: 6.2."""


class TrainingRoom:
    """A budget of bytes that trainings hold parts of while they run."""

    def __init__(self, budget_bytes: float = math.inf) -> None:
        self._budget = budget_bytes
        self._held: list[float] = []
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, needed_bytes: float, check: Callable[[], None], on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold so many bytes while the block runs; wait for them if need be, calling `on_wait` once before that.

        A training that is alone always fits: whether it does, only its first step can tell. `check` is called while
        it waits; what it raises ends the wait and leaves unchanged.
        """
        if not self._take(needed_bytes):
            on_wait()
            while not self._take(needed_bytes, wait_seconds=CHECK_SECONDS):
                check()
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(needed_bytes)
                self._changed.notify_all()

    def _take(self, needed_bytes: float, wait_seconds: float = 0.0) -> bool:
        """Take the bytes if they are free within so many seconds."""
        with self._changed:
            fits = self._changed.wait_for(lambda: self._fits(needed_bytes), wait_seconds)
            if fits:
                self._held.append(needed_bytes)
            return fits

    def _fits(self, needed_bytes: float) -> bool:
        return not self._held or sum(self._held) + needed_bytes <= self._budget


def adapter_bytes(trained_bytes: int, *, accumulates: bool) -> int:
    """What an adapter of so many bytes of trained parameters takes in training: these, their gradients, Adam's two
    moments and, where gradients accumulate, those to go back to when the memory runs out."""
    return trained_bytes * (5 if accumulates else 4)


def activation_bytes(*, tokens: int, layers: int, hidden: int, intermediate: int, value_bytes: int) -> int:
    """What a micro-batch of so many tokens, padding included, keeps for its backward pass: an upper estimate."""
    return tokens * layers * VALUES_A_TOKEN * (hidden + intermediate) * value_bytes
