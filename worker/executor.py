"""From a ticket to an ended job: claim, run, finish."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tandem.errors import Cancelled, Draining, QueueUnavailable, Superseded
from tandem.job import Failure, JobKind, JobState
from tandem.job_store import JobStore
from worker.attempt import Attempt
from worker.lease import LeaseKeeper
from worker.reporter import Reporter

log = logging.getLogger(__name__)

Runner = Callable[[Attempt], Any]
"""Executes one job: an attempt in, its JSON-ready result out. Raises AttemptStopped when asked to stop."""

EndState = Literal[JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]


@dataclass(frozen=True, slots=True)
class Ended:
    """How this worker ended a job."""

    state: EndState
    failure: Failure | None = None


FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 1.0
"""Back-off of writes that must arrive while Redis is away."""


class JobExecutor:
    """Runs jobs of this worker, each in the thread that brought its ticket."""

    def __init__(
        self,
        jobs: JobStore,
        leases: LeaseKeeper,
        reporter: Reporter,
        runners: Mapping[JobKind, Runner],
        worker_id: str,
    ) -> None:
        self._jobs = jobs
        self._leases = leases
        self._reporter = reporter
        self._runners = runners
        self._worker_id = worker_id
        self._closing = threading.Event()

    def close(self) -> None:
        """Claim nothing more."""
        self._closing.set()

    def run(self, job_id: str) -> Ended | None:
        """Execute a job if it is to be had. None: there was nothing to do here, or it goes on elsewhere."""
        if self._closing.is_set():
            return None
        try:
            claim = self._jobs.claim(job_id, self._worker_id)
        except QueueUnavailable as error:
            # Whether it was granted is unknown. If it was, its lease runs out; if not, the job is rung again.
            log.warning("%s not claimed: %s", job_id, error.message)
            return None
        if claim is None:
            return None
        attempt = Attempt(claim, self._reporter.notify)
        with self._leases.hold(attempt):
            return self._execute(attempt)

    def _execute(self, attempt: Attempt) -> Ended | None:
        job = attempt.job
        log.info("%s attempt %d: %s on %s", job.id, attempt.fence, job.kind, job.model)
        try:
            result = self._runners[job.kind](attempt)
        except Superseded:
            log.warning("%s attempt %d was superseded", job.id, attempt.fence)
        except Draining:
            self._write(attempt, lambda: self._jobs.release(job.id, attempt.fence))
        except Cancelled:
            return self._finish(attempt, JobState.CANCELLED)
        except Exception as error:
            failure = Failure.of(error)
            log.warning("%s failed: %s", job.id, failure.message, exc_info=failure.code == "internal_error")
            return self._finish(attempt, JobState.FAILED, failure=failure)
        else:
            return self._finish(attempt, JobState.SUCCEEDED, result=result)
        return None

    def _finish(
        self, attempt: Attempt, state: EndState, *, result: Any = None, failure: Failure | None = None
    ) -> Ended | None:
        written = self._write(
            attempt,
            lambda: self._jobs.finish(attempt.job.id, attempt.fence, state, result=result, failure=failure),
        )
        return Ended(state, failure) if written else None

    def _write(self, attempt: Attempt, write: Callable[[], None]) -> bool:
        """Send the last events, then a closing write, however long Redis is away.

        False: the job was given to another attempt meanwhile, and this one is told so and gives up.
        """
        pause = FIRST_RETRY_SECONDS
        while True:
            try:
                self._reporter.flush(attempt)
                write()
            except Superseded:
                log.warning("%s attempt %d ended too late: superseded", attempt.job.id, attempt.fence)
                return False
            except QueueUnavailable as error:
                log.debug("%s: its end is not yet written: %s", attempt.job.id, error.message)
                time.sleep(pause)  # nothing signals that Redis is back
                pause = min(2 * pause, LAST_RETRY_SECONDS)
            else:
                return True
