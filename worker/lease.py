"""Keeps the leases of this worker's running attempts, and learns which of them must stop."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tandem.errors import (
    AttemptStopped,
    Cancelled,
    DeadlineExceeded,
    Paused,
    QueueUnavailable,
    Superseded,
)
from tandem.job import JobKind
from tandem.job_store import JobStore, Verdict
from worker.attempt import Attempt

log = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3
"""Two renewals in a row may fail before a lease is lost."""
RENEW_SECONDS = 2.0
"""At least this often: should a nudge be lost, a cancellation is still learned of by a renewal."""
AWAY_SECONDS = 0.5
"""Between two tries to wait for nudges while Redis is away."""

UNANSWERED_SECONDS = 3.0
"""After a claim whose answer was lost: by then every other claim of this worker is answered, and held."""

REASONS: dict[Verdict, type[AttemptStopped]] = {
    "cancelled": Cancelled,
    "expired": DeadlineExceeded,
    "lost": Superseded,
    "paused": Paused,
}


class LeaseKeeper:
    """The running attempts of this worker. One thread renews, another waits for nudges: a job of this worker was
    cancelled or paused, or has expired, and the renewal that follows at once says which."""

    def __init__(self, jobs: JobStore, lease_seconds: float, worker_id: str) -> None:
        self._jobs = jobs
        self._worker_id = worker_id
        self._interval = min(lease_seconds / RENEWALS_PER_LEASE, RENEW_SECONDS)
        self._running: dict[str, Attempt] = {}
        self._claiming = 0
        self._changed = threading.Condition()
        self._look = threading.Event()
        self._stopping = threading.Event()
        self._connected = True
        self._disown_at: float | None = None
        self._threads = (
            threading.Thread(target=self._renew_always, name="leases", daemon=True),
            threading.Thread(target=self._wait_for_nudges, name="nudges", daemon=True),
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both threads. Raises QueueUnavailable."""
        self.give_up()
        self._jobs.nudge(self._worker_id)
        for thread in self._threads:
            thread.join()

    def give_up(self) -> None:
        """Renew nothing more, so that others get the jobs soon. Waits for nothing."""
        self._stopping.set()
        self._look.set()

    def note_unanswered_claim(self) -> None:
        """A claim failed on the way: what it may have been granted is given back soon, and charged to nobody."""
        self._disown_at = time.monotonic() + UNANSWERED_SECONDS

    @contextmanager
    def hold(self, attempt: Attempt) -> Iterator[None]:
        """Keep an attempt's lease while the block runs."""
        with self._changed:
            self._running[attempt.job.id] = attempt
        if attempt.deadline is not None:
            self._look.set()
        try:
            yield
        finally:
            with self._changed:
                # A later attempt of the same job on this worker may have taken the place.
                if self._running.get(attempt.job.id) is attempt:
                    del self._running[attempt.job.id]
                self._changed.notify_all()

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """What is claimed in this block, and held before its end, is waited for by `wait_idle` from its start on."""
        with self._changed:
            self._claiming += 1
        try:
            yield
        finally:
            with self._changed:
                self._claiming -= 1
                self._changed.notify_all()

    def running(self) -> list[Attempt]:
        with self._changed:
            return list(self._running.values())

    def stop_all(self, reason: AttemptStopped, *, kind: JobKind | None = None) -> None:
        """Ask all attempts, or those of a kind, to stop."""
        for attempt in self.running():
            if kind in (None, attempt.job.kind):
                attempt.stop(reason)

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no attempt runs, and none is being claimed; False if so after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running and not self._claiming, timeout)

    def renew(self) -> None:
        """One renewal of everything that runs. The log says once that Redis went away, and once that it came back."""
        attempts = {attempt.job.id: attempt for attempt in self.running()}
        fences = {job_id: attempt.fence for job_id, attempt in attempts.items()}
        try:
            verdicts = self._jobs.renew(self._worker_id, fences)
        except QueueUnavailable as error:
            # The attempts go on: the server, once it is back, decides by their fences.
            if self._connected:
                log.warning("Redis is away, work goes on without it: %s", error.message)
            self._connected = False
            return
        if not self._connected:
            log.warning("Redis is back")
        self._connected = True
        for job_id, verdict in verdicts.items():
            attempts[job_id].stop(REASONS[verdict]())

    def _renew_always(self) -> None:
        while not self._stopping.is_set():
            self._look.wait(self._pause())
            self._look.clear()
            if self._stopping.is_set():
                return
            for attempt in self.running():
                if attempt.deadline is not None and time.monotonic() >= attempt.deadline:
                    attempt.stop(DeadlineExceeded())
            self.renew()
            if self._connected:
                self._disown()

    def _disown(self) -> None:
        due = self._disown_at
        if due is None or time.monotonic() < due:
            return
        held = [attempt.job.id for attempt in self.running()]
        try:
            given = self._jobs.disown(self._worker_id, held, grace_seconds=UNANSWERED_SECONDS)
        except QueueUnavailable as error:
            log.debug("unanswered claims are given back later: %s", error.message)
            return
        if given:
            log.warning("%d jobs were claimed without an answer, and are given back", given)
        # Unless another claim has failed since.
        if self._disown_at == due:
            self._disown_at = None

    def _pause(self) -> float:
        """Until the next renewal, or the first deadline still ahead."""
        now = time.monotonic()
        ahead = [
            attempt.deadline - now
            for attempt in self.running()
            if attempt.deadline is not None and attempt.deadline > now
        ]
        return min([self._interval, *ahead])

    def _wait_for_nudges(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._jobs.wait_for_nudge(self._worker_id):
                    self._look.set()
            except QueueUnavailable as error:
                log.debug("no nudges: %s", error.message)
                self._stopping.wait(AWAY_SECONDS)
