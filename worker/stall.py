"""The stall watch: a worker whose work stands still gives its leases up and ends, so that it is started again.

A hung kernel, driver or lock raises nothing. What can be seen is that a source of work has something to do and its
count of things done stays the same. No torch here: the watch decides over callables that are handed in.

A hang that never releases Python's interpreter lock also holds up the watch, and the thread that renews leases: the
leases then run out by themselves, but nothing in the process can end it.
"""

import faulthandler
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

log = logging.getLogger(__name__)

STALLED_EXIT = 70
"""The exit status of a stalled worker: EX_SOFTWARE of sysexits.h. A supervisor restarts on any but 0."""
POLLS_PER_STALL = 10
"""Polls within the shortest limit: a stall is noticed at most a fifth later than its limit (two polls)."""
MAX_POLL_SECONDS = 1.0
"""Between two polls: they cost microseconds, and a long limit needs no slower ones."""
MAX_POLLS_COUNTED = 2
"""Planned intervals that one poll adds at most. What lies beyond was time in which this process did not run
(SIGSTOP, a sleeping laptop, a starved machine), and then its work could not go on either."""
LAST_WORD_SECONDS = 2.0
"""For giving up the leases, for the log and for the stacks, each: milliseconds unless what hangs is in the way."""
STDERR_DESCRIPTOR = 2
"""Celery replaces `sys.stderr` with an object that has no descriptor, which faulthandler needs."""


@dataclass(frozen=True, eq=False)
class ProgressSource:
    """Something that works, and how to see whether it does.

    `is_busy` and `count` are called from the watch's thread. They must not raise, nor wait for a lock: a hung thread
    may hold it.
    """

    name: str
    """What the log calls it; need not be unique."""
    is_busy: Callable[[], bool]
    """Whether there is work that it ought to be doing."""
    count: Callable[[], int]
    """Things done so far: any change is progress."""
    limit_seconds: float | None = None
    """How long it may be busy with no progress; None for the watch's `stall_seconds`."""


@dataclass
class _Observed:
    """What the polls of one source have seen."""

    count: int | None = None
    """Its count at the last poll; None if it was idle then, or has not been polled yet."""
    stuck_seconds: float = 0.0
    """How long it has been busy at this count."""


class StallWatch:
    """Polls its sources in a thread, and calls `on_stall` with the name of the first that stands still.

    `add`, `remove` and `watch_calls` may be called from any thread, before and after `start`.
    """

    def __init__(
        self, stall_seconds: float, on_stall: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`on_stall` is called at most once, in the watch's thread, which then ends.

        Raises ValueError unless `stall_seconds` is finite and above 0.
        """
        if not (math.isfinite(stall_seconds) and stall_seconds > 0):
            raise ValueError(f"stall_seconds must be finite and above 0, not {stall_seconds}")
        self.stall_seconds = stall_seconds
        self.poll_seconds = min(stall_seconds / POLLS_PER_STALL, MAX_POLL_SECONDS)
        self._on_stall = on_stall
        self._clock = clock
        self._sources: dict[ProgressSource, _Observed] = {}
        self._lock = threading.Lock()
        self._last_poll: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stall-watch", daemon=True)

    def add(self, source: ProgressSource) -> None:
        """Watch a source from the next poll on."""
        with self._lock:
            self._sources[source] = _Observed()

    def remove(self, source: ProgressSource) -> None:
        """Forget a source; nothing happens if it is not watched."""
        with self._lock:
            self._sources.pop(source, None)

    @contextmanager
    def watch_calls(
        self, name: str, call: Callable[[], None], *, limit_seconds: float | None = None
    ) -> Iterator[Callable[[], None]]:
        """Give a function that does what `call` does; while the block runs, each call of it is progress.

        For work that reports by calling back, as training does before every micro step: going without a call for
        the limit is a stall.
        """
        calls = 0

        def counted() -> None:
            nonlocal calls
            calls += 1
            call()

        source = ProgressSource(name, is_busy=lambda: True, count=lambda: calls, limit_seconds=limit_seconds)
        self.add(source)
        try:
            yield counted
        finally:
            self.remove(source)

    def stalled(self, now: float) -> str | None:
        """Poll every source once; the name of one that has stood still for its limit, if there is one.

        `now` is in seconds on a monotonic clock. Polls are expected every `poll_seconds`; one that comes much later
        adds no more than `MAX_POLLS_COUNTED` intervals to any source's time.
        """
        passed = 0.0 if self._last_poll is None else now - self._last_poll
        self._last_poll = now
        counted_seconds = min(passed, MAX_POLLS_COUNTED * self.poll_seconds)
        with self._lock:
            observed = list(self._sources.items())
        for source, seen in observed:
            count = source.count() if source.is_busy() else None
            if count is None or count != seen.count:
                seen.count, seen.stuck_seconds = count, 0.0
                continue
            seen.stuck_seconds += counted_seconds
            if seen.stuck_seconds >= self._limit(source):
                return source.name
        return None

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self) -> None:
        """End the polling; not to be called by `on_stall`, whose thread it waits for."""
        self._stopping.set()
        self._thread.join()

    def _limit(self, source: ProgressSource) -> float:
        return self.stall_seconds if source.limit_seconds is None else source.limit_seconds

    def _run(self) -> None:
        while not self._stopping.wait(self.poll_seconds):
            name = self.stalled(self._clock())
            if name is not None:
                self._on_stall(name)
                return


def exit_stalled(name: str, stop_renewing: Callable[[], None]) -> NoReturn:
    """Give up the leases, log, write every thread's stack to stderr, and end the process with `STALLED_EXIT`.

    It ends whatever happens: each of these runs in a thread that is waited for briefly, since what hangs may be the
    very connection, lock or pipe that it needs. Nothing is flushed or closed, and no exit handler runs.
    """
    for last_word in (stop_renewing, partial(_log_end, name), _write_stacks):
        thread = threading.Thread(target=last_word, name="last-words", daemon=True)
        thread.start()
        thread.join(LAST_WORD_SECONDS)
    os._exit(STALLED_EXIT)


def _log_end(name: str) -> None:
    log.critical("%s has stood still for too long: the worker ends with status %d", name, STALLED_EXIT)


def _write_stacks() -> None:
    faulthandler.dump_traceback(STDERR_DESCRIPTOR, all_threads=True)
