"""From a ticket to an ended job: claim, run, finish."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from tandem.errors import AttemptStopped, Cancelled, DeadlineExceeded, Draining, Paused, QueueUnavailable, Superseded
from tandem.job import Failure, JobKind, JobState
from tandem.job_store import Claim, EndState, JobStore
from worker.attempt import Attempt
from worker.lease import LeaseKeeper
from worker.monitor import JobMonitor
from worker.reporter import Reporter
from worker.retries import next_try

log = logging.getLogger(__name__)

Runner = Callable[[Attempt], Any]
"""Executes one job: an attempt in, its JSON-ready result out. Raises AttemptStopped when asked to stop."""

FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 1.0
"""Back-off of writes that must arrive while Redis is away."""


class JobExecutor:
    """Runs jobs of this worker, each in the thread that brought a ticket."""

    def __init__(
        self,
        jobs: JobStore,
        leases: LeaseKeeper,
        reporter: Reporter,
        monitor: JobMonitor,
        runners: Mapping[JobKind, Runner],
        worker_id: str,
    ) -> None:
        self._jobs = jobs
        self._leases = leases
        self._reporter = reporter
        self._monitor = monitor
        self._runners = runners
        self._worker_id = worker_id
        self._closing = threading.Event()

    def close(self) -> None:
        """Claim nothing more."""
        self._closing.set()

    def run(self, lane: str, *, on_claimed: Callable[[], None] | None = None) -> bool:
        """Execute the job of the lane whose turn it is; False if this worker is to have none now.

        `on_claimed` is called before the execution.
        """
        with ExitStack() as claimed:
            with self._leases.claiming():
                claim = self._claim(lane)
                if claim is None:
                    return False
                attempt = Attempt(claim, self._jobs, self._reporter.notify)
                claimed.enter_context(self._leases.hold(attempt))
            if on_claimed is not None:
                on_claimed()
            self._execute(attempt)
        return True

    def _claim(self, lane: str) -> Claim | None:
        if self._closing.is_set():
            return None
        try:
            return self._jobs.claim(lane, self._worker_id)
        except QueueUnavailable as error:
            self._leases.note_unanswered_claim()
            log.warning("nothing claimed from %s: %s", lane, error.message)
            return None

    def _execute(self, attempt: Attempt) -> None:
        job = attempt.job
        log.info("%s attempt %d: %s on %s", job.id, attempt.fence, job.kind, job.model)
        self._monitor.started(job)
        started = time.monotonic()
        try:
            # It may have expired or been cancelled on its way here.
            attempt.check()
            result = self._runners[job.kind](attempt)
        except AttemptStopped as reason:
            self._stop(attempt, reason, started)
        except Exception as error:
            self._fail(attempt, Failure.of(error), error, started)
        else:
            self._finish(attempt, JobState.SUCCEEDED, started, result=result)

    def _stop(self, attempt: Attempt, reason: AttemptStopped, started: float) -> None:
        job = attempt.job
        match reason:
            case Cancelled():
                self._finish(attempt, JobState.CANCELLED, started)
            case DeadlineExceeded():
                self._finish(attempt, JobState.EXPIRED, started)
            case Draining() | Paused():
                if self._write(attempt, lambda: self._jobs.release(job.id, attempt.fence)):
                    self._monitor.given_back(job, reason.code)
            case _:
                log.warning("%s attempt %d was superseded", job.id, attempt.fence)

    def _fail(self, attempt: Attempt, failure: Failure, error: Exception, started: float) -> None:
        job = attempt.job
        delay = next_try(job, failure)
        if delay is None:
            log.warning("%s failed: %s", job.id, failure.message, exc_info=_unforeseen(failure, error))
            self._finish(attempt, JobState.FAILED, started, failure=failure, is_dead=failure.retryable)
            return
        log.warning("%s is tried again in %.1f s: %s", job.id, delay, failure.message)
        if self._write(attempt, lambda: self._jobs.retry(job.id, attempt.fence, failure, delay)):
            self._monitor.given_back(job, f"{failure.code}: {failure.message}")

    def _finish(
        self,
        attempt: Attempt,
        state: EndState,
        started: float,
        *,
        result: Any = None,
        failure: Failure | None = None,
        is_dead: bool = False,
    ) -> None:
        job = attempt.job
        if state is not JobState.SUCCEEDED:
            result = _left(attempt)
        if self._write(
            attempt,
            lambda: self._jobs.finish(job.id, attempt.fence, state, result=result, failure=failure, is_dead=is_dead),
        ):
            self._monitor.ended(job, state, time.monotonic() - started, failure)

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


def _left(attempt: Attempt) -> Any:
    try:
        return attempt.left()
    except Exception:
        # The end itself, and its reason, are not to wait for what is only told beside them.
        log.warning("%s ends without what it was to leave", attempt.job.id, exc_info=True)
        return None


def _unforeseen(failure: Failure, error: Exception) -> Exception | None:
    """The error, if its trace tells more than its message."""
    return error if failure.code == "internal_error" else None
