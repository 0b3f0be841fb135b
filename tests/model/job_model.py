"""What the queue promises of a job's life, in plain Python: the specification of tandem/transitions.

Each method is one transition and answers what JobStore answers, in the words of the Lua function of the same name.
"""

import json
from typing import Any, Literal

from tests.model.clocked_library import EXPIRED_AT_ONCE, PRUNED_AT_ONCE
from tests.model.life_model import (
    CRASHES_ALLOWED,
    CRASHES_IN_ALL,
    IDEMPOTENCY_MS,
    LEASE_MS,
    QUEUE_LIMIT,
    Full,
    LifeModel,
    Order,
    compact,
)
from tests.model.ready_model import ModelJob
from tests.model.workers_model import Remembered


class JobModel(LifeModel):
    # Submission

    def submit(self, order: Order) -> tuple[Literal["created", "existing", "conflict"], ModelJob] | Full:
        known = self.idempotency.get((order.owner, order.key)) if order.key else None
        if known and (earlier := self.jobs.get(known[0].value)):
            return ("existing" if known[1] == order.spec else "conflict"), earlier
        if order.id in self.jobs:
            return "existing", self.jobs[order.id]
        if full := self._fullness(order.owner, QUEUE_LIMIT, order.owner_limit):
            return full
        if order.key:
            until = Remembered(order.id, self.now + IDEMPOTENCY_MS)
            self.idempotency[order.owner, order.key] = until, order.spec
        self.weights[order.owner] = order.weight
        job = self._new_job(
            order.id, order.owner, order.kind, order.model, order.lane, order.priority, order.spec, order.webhook
        )
        job.not_before = self.now + order.delay_ms if order.delay_ms else order.not_before
        if order.deadline_ms is not None:
            job.deadline, job.is_deadline_watched = self.now + order.deadline_ms, True
        self._enqueue(job)
        return "created", job

    def requeue_dead(self, job_id: str, new_id: str) -> tuple[str, ModelJob | None] | Full:
        """A dead letter's work as a new job; the old one's end stands."""
        if not (old := self.jobs.get(job_id)):
            return "missing", None
        if old.requeued_as in self.jobs:
            return "existing", self.jobs[old.requeued_as]
        if not old.dead:
            return "not_dead", None
        if full := self._fullness(old.owner, QUEUE_LIMIT, 0):
            return full
        job = self._new_job(new_id, old.owner, old.kind, old.model, old.lane, old.priority, old.spec, old.webhook)
        job.requeued_from, old.requeued_as, old.died_at = old.id, new_id, None
        self._enqueue(job)
        return "created", job

    # An attempt

    def claim(self, lane: str, worker: str) -> ModelJob | None:
        if self.is_paused(lane) or not (allowed := self.may_take(lane, worker)):
            return None
        for _ in range(EXPIRED_AT_ONCE):
            job = next(iter(self.ready(lane, "alone")), None) if allowed == "alone" else self.next_job(lane)
            if job is None:
                return None
            if not self._is_over(job):
                if allowed == "alone":
                    self.solo[worker] = job.id
                else:
                    self.charge(job)
                self._start(job, worker)
                self.top_up(lane)
                return job
            self._conclude(job, "expired")
            if not self.ready(lane, "alone"):
                allowed = "any"
        self.top_up(lane)
        return None

    def holds(self, job_id: str, fence: int) -> ModelJob | None:
        """The job, if this is its running attempt."""
        job = self.jobs.get(job_id)
        return job if job and job.state == "running" and job.attempt == fence else None

    def renew(self, fences: dict[str, int]) -> dict[str, str]:
        """Of the attempts that must stop: why."""
        verdicts = {}
        for job_id, fence in fences.items():
            if not (job := self.holds(job_id, fence)):
                verdicts[job_id] = "lost"
                continue
            job.lease_until = self.now + LEASE_MS
            self.trust_survivor(job)
            if job.cancel_requested:
                verdicts[job_id] = "cancelled"
            elif self._is_over(job):
                verdicts[job_id] = "expired"
            elif job.paused:
                verdicts[job_id] = "paused"
        return verdicts

    def report(self, job_id: str, fence: int, kind: str, data: Any) -> bool:
        """False if the attempt is no longer the running one, as with `finish` and `release`."""
        if not (job := self.holds(job_id, fence)):
            return False
        if kind == "$checkpoint":
            job.checkpoint = compact(data)
            if job.kind == "batch":
                job.forgiven = job.crashes + 1
            return True
        job.events.append((kind, data))
        if kind == "progress":
            job.progress = compact(data)
        return True

    def finish(self, job_id: str, fence: int, state: str, result: Any, failure: str | None, is_dead: bool) -> bool:
        if not (job := self.holds(job_id, fence)):
            # The same attempt asks again, since its first answer was lost.
            return job_id in self.jobs and self.jobs[job_id].finished_by == fence
        job.finished_by, job.failure = fence, failure
        job.result = None if result is None else compact(result)
        self._conclude(job, state)
        if is_dead:
            self._bury(job)
        return True

    def release(self, job_id: str, fence: int, failure: str | None = None, delay_ms: int = 0) -> bool:
        """With a failure: it has failed for a passing reason, and that counts as a retry."""
        if not (job := self.holds(job_id, fence)):
            return False
        if failure is not None:
            job.retries += 1
            job.not_before = self.now + delay_ms
            job.events.append(("retry", {"failure": json.loads(failure), "at": job.not_before / 1000}))
        self._requeue(job)
        return True

    def disown(self, worker: str, held: set[str], grace_ms: int) -> int:
        """Give back what the worker runs by the record, and does not know of: its claims' answers were lost."""
        given = 0
        for job in [job for job in self.jobs.values() if job.place == "running"]:
            if job.worker == worker and job.id not in held and (job.started_at or 0) + grace_ms <= self.now:
                self._requeue(job)
                given += 1
        return given

    # What a user asks for

    def cancel(self, job_id: str) -> None:
        job = self.jobs[job_id]
        if job.state == "queued":
            self._conclude(job, "cancelled")
        elif job.state == "running" and not job.cancel_requested:
            job.cancel_requested = True
            job.events.append(("cancel", {}))
            self._nudge(job)

    def pause(self, job_id: str) -> None:
        job = self.jobs[job_id]
        if job.paused or job.state not in ("queued", "running"):
            return
        job.paused = True
        if job.state == "queued":
            self.take_out(job, "held")
        else:
            self._nudge(job)
        job.events.append(("pause", {}))

    def resume(self, job_id: str) -> None:
        job = self.jobs[job_id]
        if not job.paused:
            return
        job.paused = False
        job.events.append(("resume", {}))
        if job.state == "queued":
            self._enqueue(job)

    def pause_lane(self, lane: str) -> None:
        self.paused.setdefault(lane, self.now)

    def resume_lane(self, lane: str) -> None:
        self.paused.pop(lane, None)
        for name in self.lanes if lane == "*" else {lane}:
            self.top_up(name)

    # Sweeps

    def reap(self, failure: str) -> tuple[int, int]:
        """Take back attempts whose lease is over. A job dies of it only if it ran alone then, or of very many."""
        lost = self._due({job.id: job.lease_until for job in self.jobs.values() if job.place == "running"})
        losses = self.losses(lost, LEASE_MS)
        died = 0
        for job in lost:
            assert job.worker is not None
            guilt = losses[job.worker].guilt(job.id)
            job.crashes += guilt != "innocent"
            job.suspect |= guilt == "together"
            charged = guilt != "innocent"
            is_dead = charged and (
                (guilt == "alone" and job.crashes - job.forgiven >= CRASHES_ALLOWED)
                or job.crashes - job.forgiven >= CRASHES_IN_ALL
            )
            if is_dead and not job.cancel_requested:
                job.failure = failure
                self._conclude(job, "failed")
                self._bury(job)
                died += 1
            else:
                self._requeue(job)
        return len(lost) - died, died

    def server_restarts(self) -> None:
        """As the first sweep after it finds: a server that was away charges nobody."""
        for job in self.jobs.values():
            if job.place == "running":
                job.lease_until = self.now + LEASE_MS

    def wake(self) -> tuple[int, int]:
        """(readied, expired)"""
        expired = 0
        deadlines = {job.id: job.deadline for job in self.jobs.values() if job.is_deadline_watched and job.deadline}
        for job in self._due(deadlines):
            job.is_deadline_watched = False
            if job.state == "queued":
                self._conclude(job, "expired")
                expired += 1
            else:
                self._nudge(job)
        woken = self._due({job.id: job.not_before or 0 for job in self.jobs.values() if job.place == "delayed"})
        for job in woken:
            self.put_ready(job)
        return len(woken), expired

    def ring_lost(self) -> int:
        return sum(self.top_up(lane) for lane in self.lanes)

    def prune(self) -> int:
        over = self._due(
            {job.id: job.forget_at for job in self.jobs.values() if job.place == "ended"}, PRUNED_AT_ONCE
        )
        for job in over:
            del self.jobs[job.id]
        return len(over)

    # Webhooks

    def take_webhooks(self, limit: int, lease_ms: int) -> list[tuple[str, int]]:
        """(job, tries that failed so far); nobody else gets them during the lease."""
        waiting = {job.id: job.webhook_at for job in self.jobs.values() if job.webhook_at is not None}
        due = self._due(waiting, limit)
        for job in due:
            job.webhook_at = self.now + lease_ms
        return [(job.id, job.webhook_tries) for job in due]

    def settle_webhook(self, job_id: str, retry_ms: int | None, note: str) -> None:
        if job := self.jobs.get(job_id):
            job.webhook_note = note
            if job.webhook_at is not None:
                job.webhook_tries += retry_ms is not None
                job.webhook_at = None if retry_ms is None else self.now + retry_ms
