"""The steps that the transitions of the model are made of: how a job is queued, started, given back and ended."""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from tests.model.clocked_library import SWEEP_LIMIT
from tests.model.ready_model import ModelJob
from tests.model.workers_model import Remembered, WorkersModel

LEASE_MS = 10_000
KEEP_MS = 150_000
DEAD_KEEP_MS = 1_000_000
IDEMPOTENCY_MS = 100_000
QUEUE_LIMIT = 7
CRASHES_ALLOWED = 2
CRASHES_IN_ALL = 3
"""What the stores of the tests are given; all so small that a run of 50 steps meets them."""
DRAIN_MS = 60_000
"""Over which the rate of ended jobs is averaged."""
NUDGE_MS = 60_000
"""After this time a nudge that nobody took is of no use."""


@dataclass(frozen=True, slots=True)
class Full:
    """Why no further job is queued."""

    whose: Literal["all", "owner"]
    queued: int
    rate: float
    """Jobs ended a second."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is submitted."""

    id: str
    owner: str
    lane: str
    spec: str
    weight: float = 1.0
    owner_limit: int = 0
    """0: none."""
    priority: int = 2
    kind: str = "inference"
    model: str = "m1"
    key: str = ""
    delay_ms: int = 0
    not_before: int | None = None
    deadline_ms: int | None = None
    webhook: bool = False


def compact(value: Any) -> str:
    """JSON as it is stored."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


class LifeModel(WorkersModel):
    def __init__(self, now: int) -> None:
        super().__init__(now)
        self.sequence = 0
        self.idempotency: dict[tuple[str, str], tuple[Remembered, str]] = {}
        """(owner, key) -> the job's id, and the spec that it was used with."""
        self.drained: dict[str, tuple[int, float]] = {}
        """Owner, and `*` -> (when a job ended last, jobs ended a second by then)."""

    def pass_time(self, milliseconds: int) -> None:
        super().pass_time(milliseconds)
        self.idempotency = {key: kept for key, kept in self.idempotency.items() if kept[0].until >= self.now}

    def queued(self, owner: str | None = None) -> int:
        """Queued jobs: of all, or of one owner."""
        return sum(job.state == "queued" and owner in (None, job.owner) for job in self.jobs.values())

    def drain_rate(self, owner: str) -> float:
        """Jobs ended a second, averaged over the last minute or so."""
        at, rate = self.drained.get(owner, (self.now, 0.0))
        return rate * math.exp((at - self.now) / DRAIN_MS)

    def _fullness(self, owner: str, limit: int, owner_limit: int) -> Full | None:
        if self.queued() >= limit:
            return Full("all", self.queued(), self.drain_rate("*"))
        if owner_limit and self.queued(owner) >= owner_limit:
            return Full("owner", self.queued(owner), self.drain_rate(owner))
        return None

    def _new_job(
        self, job_id: str, owner: str, kind: str, model: str, lane: str, priority: int, spec: str, webhook: bool
    ) -> ModelJob:
        self.lanes.add(lane)
        self.sequence += 1
        job = ModelJob(job_id, self.sequence, owner, kind, model, lane, priority, KEEP_MS, self.now)
        job.spec, job.webhook = spec, webhook
        self.jobs[job_id] = job
        return job

    def _enqueue(self, job: ModelJob) -> None:
        """A queued job to where it waits: among the ready ones, for its time, or for whoever paused it."""
        if job.paused:
            job.place = "held"
        elif job.not_before is not None and job.not_before > self.now:
            job.place = "delayed"
        else:
            self.put_ready(job)

    def _start(self, job: ModelJob, worker: str) -> None:
        self.take_out(job, "running")
        job.attempt += 1
        job.worker, job.started_at, job.not_before, job.ready_at = worker, self.now, None, None
        job.lease_until = self.now + LEASE_MS
        self._move(job, "running")

    def _requeue(self, job: ModelJob) -> None:
        """A running job back to its queue, or to its end if that was asked for, or its time is over."""
        if job.cancel_requested:
            return self._conclude(job, "cancelled")
        if self._is_over(job):
            return self._conclude(job, "expired")
        self.worker_leaves(job, "held")
        job.worker = job.started_at = job.progress = None
        self._move(job, "queued")
        return self._enqueue(job)

    def _conclude(self, job: ModelJob, state: str) -> None:
        """The one way into a terminal state."""
        if job.place == "running":
            self.worker_leaves(job, "ended")
        else:
            self.take_out(job, "ended")
        job.finished_at = self.now
        job.ready_at = job.not_before = None
        if job.kind != "batch":
            job.checkpoint = None
        job.paused = job.suspect = job.is_deadline_watched = False
        job.forget_at = self.now + job.keep_ms
        if job.webhook:
            job.webhook_at = self.now
        for name in (job.owner, "*"):
            # Kept as text with nine decimals.
            self.drained[name] = self.now, round(self.drain_rate(name) + 1000 / DRAIN_MS, 9)
        self._move(job, state)

    def _bury(self, job: ModelJob) -> None:
        """Kept until somebody looks, and longer than other ended jobs."""
        job.dead, job.died_at, job.forget_at = True, self.now, self.now + DEAD_KEEP_MS

    def _move(self, job: ModelJob, state: str) -> None:
        job.state = state
        job.events.append(("state", {"state": state, "attempt": job.attempt, "at": self.now / 1000}))

    def _is_over(self, job: ModelJob) -> bool:
        return job.deadline is not None and job.deadline <= self.now

    def _nudge(self, job: ModelJob) -> None:
        assert job.worker is not None
        waiting, _ = self.nudges.get(job.worker, ([], 0))
        self.nudges[job.worker] = [job.id, *waiting], self.now + NUDGE_MS

    def _due(self, times: dict[str, int], limit: int = SWEEP_LIMIT) -> list[ModelJob]:
        """Those whose time has come, the earliest first, and among equals by id."""
        due = sorted((at, job_id) for job_id, at in times.items() if at <= self.now)
        return [self.jobs[job_id] for _, job_id in due[:limit]]
