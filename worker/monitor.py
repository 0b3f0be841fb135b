"""Tells Celery's monitors (Flower) of jobs: under the job's id, what Celery itself would tell of a task.

Tickets name no job, so Celery's own events of them say nothing; these are sent in their place, from one thread, so
that no job waits for them. They are news and not truth: while Redis is away they may be lost.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from tandem.job import Failure, Job, JobState
from tandem.tickets import TASK

log = logging.getLogger(__name__)

WAITING_EVENTS = 10_000
"""Beyond it the oldest are dropped: monitors keep as many jobs themselves."""

FLUSH_SECONDS = 0.2
"""Between two messages to the monitors: nobody sees it, and a publication of each event alone took a third of a
worker's time for jobs that do nothing (measured)."""

Send = Callable[..., None]
"""`send(event type, uuid=…, **fields)`: add an event to the next message. Raises what Celery's transport raises."""


class JobMonitor:
    def __init__(self, send: Send, flush: Callable[[], None] | None = None) -> None:
        """`flush` sends the message now; None if `send` does."""
        self._send = send
        self._flush = flush
        self._events: deque[tuple[str, dict[str, Any]]] = deque(maxlen=WAITING_EVENTS)
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send what waits, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def started(self, job: Job) -> None:
        what = repr((job.spec.get("task", job.kind), job.model))
        self._tell("task-received", job, name=TASK, args=what, kwargs="{}", retries=job.retries)
        self._tell("task-started", job)

    def ended(self, job: Job, state: JobState, seconds: float, failure: Failure | None = None) -> None:
        if state is JobState.SUCCEEDED:
            self._tell("task-succeeded", job, result=repr(str(state)), runtime=seconds)
        elif failure is not None:
            self._tell("task-failed", job, exception=f"{failure.code}: {failure.message}", traceback="")
        else:
            self._tell("task-revoked", job, terminated=False, signum=None, expired=state is JobState.EXPIRED)

    def given_back(self, job: Job, why: str) -> None:
        """The attempt is over and the job is not."""
        self._tell("task-retried", job, exception=why, traceback="")

    def _tell(self, event: str, job: Job, **fields: Any) -> None:
        with self._changed:
            self._events.append((event, {"uuid": job.id, "timestamp": time.time(), **fields}))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self._stopping)
                events, is_last = list(self._events), self._stopping
                self._events.clear()
            try:
                for event, fields in events:
                    self._send(event, **fields)
                if self._flush is not None:
                    self._flush()
            except Exception as error:  # the transport's errors have no common base
                log.debug("monitors were not told: %s", error)
            if is_last:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, FLUSH_SECONDS)
