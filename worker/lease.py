"""Renews every running attempt's lease in one call, and learns from the answer which of them must stop."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tandem.errors import AttemptStopped, Cancelled, QueueUnavailable, Superseded
from tandem.job_store import JobStore, Verdict
from worker.attempt import Attempt

log = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3
"""Two renewals in a row may fail before a lease is lost."""
CANCEL_SECONDS = 0.5
"""A renewal is also how a cancellation is learned of, so it comes at least this often."""


class LeaseKeeper:
    """The running attempts of this worker, kept alive by one thread."""

    def __init__(self, jobs: JobStore, lease_seconds: float) -> None:
        self._jobs = jobs
        self._interval = min(lease_seconds / RENEWALS_PER_LEASE, CANCEL_SECONDS)
        self._running: dict[str, Attempt] = {}
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._connected = True
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    @contextmanager
    def hold(self, attempt: Attempt) -> Iterator[None]:
        """Keep an attempt's lease while the block runs."""
        with self._changed:
            self._running[attempt.job.id] = attempt
        try:
            yield
        finally:
            with self._changed:
                # A later attempt of the same job on this worker may have taken the place.
                if self._running.get(attempt.job.id) is attempt:
                    del self._running[attempt.job.id]
                self._changed.notify_all()

    def running(self) -> list[Attempt]:
        with self._changed:
            return list(self._running.values())

    def stop_all(self, reason: AttemptStopped) -> None:
        for attempt in self.running():
            attempt.stop(reason)

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no attempt runs; False if some still do after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout)

    def renew(self) -> None:
        """One renewal of everything that runs. The log says once that Redis went away, and once that it came back."""
        attempts = {attempt.job.id: attempt for attempt in self.running()}
        try:
            verdicts = self._jobs.renew({job_id: attempt.fence for job_id, attempt in attempts.items()})
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
            attempts[job_id].stop(_reason(verdict))

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            self.renew()


def _reason(verdict: Verdict) -> AttemptStopped:
    return Cancelled() if verdict == "cancelled" else Superseded()
