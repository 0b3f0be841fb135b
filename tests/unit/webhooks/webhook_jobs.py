"""A store of jobs that have ended, in memory: what the deliverer asks of the real one, with a clock that skips."""

import queue
import threading
from dataclasses import dataclass

from tandem.errors import QueueUnavailable, UnknownJob
from tandem.job import Job
from tandem.webhooks.schedule import WebhookDue
from tandem.webhooks.signature import Signer


@dataclass(frozen=True)
class Settled:
    job_id: str
    retry_in: float | None
    note: str


class WebhookJobs:
    """Called from several threads. A job that is to be tried again is due at once, whatever the pause."""

    def __init__(self, signer: Signer) -> None:
        self.signer = signer
        self.settled: queue.SimpleQueue[Settled] = queue.SimpleQueue()
        self.away = False
        """As if the queue's server did not answer."""
        self.takes: queue.SimpleQueue[int] = queue.SimpleQueue()
        """How many were taken in each call."""
        self.refused: queue.SimpleQueue[None] = queue.SimpleQueue()
        """One entry for each call while it was away."""
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._due: list[WebhookDue] = []
        self._leased: dict[str, WebhookDue] = {}

    def add(self, *jobs: Job) -> None:
        with self._lock:
            for job in jobs:
                self._jobs[job.id] = job
                self._due.append(WebhookDue(job.id, 0))

    def forget(self, job_id: str) -> None:
        with self._lock:
            del self._jobs[job_id]

    @property
    def open(self) -> int:
        """Jobs whose webhook is not over."""
        with self._lock:
            return len(self._due) + len(self._leased)

    def take_webhooks(self, limit: int, lease_seconds: float) -> list[WebhookDue]:
        assert lease_seconds > 0
        self._answer()
        with self._lock:
            taken, self._due = self._due[:limit], self._due[limit:]
            self._leased |= {one.job_id: one for one in taken}
        self.takes.put(len(taken))
        return taken

    def settle_webhook(self, job_id: str, *, retry_in: float | None, note: str) -> None:
        self._answer()
        with self._lock:
            due = self._leased.pop(job_id)
            if retry_in is not None:
                self._due.append(WebhookDue(job_id, due.deliveries + 1))
        self.settled.put(Settled(job_id, retry_in, note))

    def get(self, job_id: str) -> Job:
        self._answer()
        with self._lock:
            if job_id not in self._jobs:
                raise UnknownJob()
            return self._jobs[job_id]

    def _answer(self) -> None:
        if self.away:
            self.refused.put(None)
            raise QueueUnavailable("the test's queue is away")
