"""Sends the attempts' events to their streams, from one thread, in batches."""

import logging
import threading

from tandem.errors import QueueUnavailable, Superseded
from tandem.job_store import JobStore
from worker.attempt import Attempt

log = logging.getLogger(__name__)

BATCH_SECONDS = 0.02
"""Between two sendings: unseen by a reader of a stream, and 32 streams cost one call each in that time."""
RETRY_SECONDS = 0.5
"""Between two tries while Redis is away."""


class Reporter:
    def __init__(self, jobs: JobStore) -> None:
        self._jobs = jobs
        self._waiting: set[Attempt] = set()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def notify(self, attempt: Attempt) -> None:
        """There are events to send."""
        with self._changed:
            self._waiting.add(attempt)
            self._changed.notify()

    def flush(self, attempt: Attempt) -> None:
        """Send what is buffered, now. Raises QueueUnavailable; the events are kept then."""
        with attempt.sending:
            events = attempt.take_events()
            if not events:
                return
            try:
                self._jobs.report(attempt.job.id, attempt.fence, events)
            except Superseded as reason:
                attempt.stop(reason)
            except QueueUnavailable:
                attempt.give_back_events(events)
                raise

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping.is_set())
                attempts, self._waiting = self._waiting, set()
            pause = BATCH_SECONDS
            for attempt in attempts:
                try:
                    self.flush(attempt)
                except QueueUnavailable as error:
                    log.debug("events of %s wait: %s", attempt.job.id, error.message)
                    self.notify(attempt)
                    pause = RETRY_SECONDS
            self._stopping.wait(pause)
