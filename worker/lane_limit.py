"""Lanes of which a worker runs only so many jobs at a time, and leaves the others to other workers."""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol


class Consumer(Protocol):
    """Takes tickets from lanes."""

    def pause(self, lanes: Sequence[str]) -> None: ...

    def resume(self, lanes: Sequence[str]) -> None: ...


class LaneLimit:
    def __init__(
        self,
        at_once: int,
        lanes: Sequence[str],
        consumer: Consumer,
        *,
        goes_on: Callable[[], bool],
        ring: Callable[[], None],
    ) -> None:
        """`goes_on` says whether more tickets are wanted at all; `ring` has lost tickets pushed again."""
        self.lanes = frozenset(lanes)
        self._at_once = at_once
        self._consumer = consumer
        self._goes_on = goes_on
        self._ring = ring
        self._running = 0
        self._changed = threading.Lock()

    def run(self, execute: Callable[[Callable[[], None]], bool]) -> None:
        """Execute one job of these lanes, unless enough of them run: the ticket is then let go, and rung for later.

        `execute` is handed what to call when it has claimed a job, and answers whether it had one.
        """
        with self._changed:
            if self._running == self._at_once:
                return
            self._running += 1
        ran = False
        try:
            ran = execute(self._pause_if_full)
        finally:
            with self._changed:
                self._running -= 1
                # Not after a refused claim: the lane would be rung, and refused, without end.
                takes_more = ran and self._goes_on()
                if takes_more:
                    self._consumer.resume(tuple(self.lanes))
        if takes_more:
            self._ring()

    def _pause_if_full(self) -> None:
        with self._changed:
            if self._running == self._at_once:
                self._consumer.pause(tuple(self.lanes))
