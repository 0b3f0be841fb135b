"""The store of jobs: one atomic server-side call for each change of a job (transitions/*.lua).

Reads are in job_reads.py, sweeps, nudges and webhooks in job_upkeep.py.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tandem.errors import Conflict, IdempotencyConflict, QueueFull, QueueUnavailable, Superseded
from tandem.failpoints import failpoint
from tandem.function_library import PREFIX
from tandem.job import Failure, Job, JobKind, JobState
from tandem.job_reads import SERVICE, media_references, reference, unknown_job
from tandem.job_upkeep import JobUpkeep, milliseconds
from tandem.specs import PRIORITIES, Scheduling
from tandem.tickets import ticket_message

INLINE_BYTES = 64 * 1024
"""A larger spec or result lives in the artifact store; Redis keeps its digest."""
ROOM = 0.1
"""Of a full queue: a client is asked to come back when so much of it has drained."""
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS, UNKNOWN_RETRY_SECONDS = 1.0, 120.0, 30.0
"""Bounds of what a refused client is told (the openai SDK gives up above two minutes); the last one while nothing has
ended lately."""

Verdict = Literal["lost", "cancelled", "paused", "expired"]
EndState = Literal[JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED]


@dataclass(frozen=True, slots=True)
class Share:
    """What an owner may take of the service."""

    weight: float = 1.0
    """Against other owners with jobs of the same priority in a lane."""
    max_queued: int | None = None
    """Queued jobs at once; None leaves only the limit of all."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A granted attempt: the job's record and the fence that every write must show."""

    job: Job
    fence: int
    seconds_left: float | None
    """Until the job's deadline, by the server's clock."""


@dataclass(frozen=True, slots=True)
class Submitted:
    job: Job
    created: bool
    """False: the idempotency key named a job that was there already."""


class JobStore(JobUpkeep):
    """All that is done with jobs. Thread-safe: clients of redis-py are. Every method raises QueueUnavailable."""

    def submit(
        self,
        *,
        kind: JobKind,
        model: str,
        lane: str,
        owner: str,
        spec: Mapping[str, Any],
        scheduling: Scheduling | None = None,
        share: Share | None = None,
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Queue a job: record, idempotency key, index and ticket in one call.

        Raises IdempotencyConflict if the key was used with another spec, QueueFull with the time to come back.
        """
        failpoint("submit.before")
        when, share = scheduling or Scheduling(), share or Share()
        # In the order in which it was sent: a schema's properties are written in theirs.
        body = json.dumps(spec, separators=(",", ":"), ensure_ascii=False)
        # Sorted: the same request is the same, however a client orders its fields.
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
        fields: dict[str, Any] = {
            "owner": owner,
            "kind": kind,
            "model": model,
            "priority": PRIORITIES.index(when.priority),
            "keep_ms": milliseconds(self._settings.result_seconds),
        }
        if when.not_before is not None:
            fields["not_before"] = milliseconds(when.not_before)
        if when.webhook is not None:
            fields["webhook"] = 1
        job_id = _new_id()
        answer = self._functions.call(
            "submit",
            job_id,
            owner,
            share.weight,
            lane,
            ticket_message(lane),
            self._stored(body),
            idempotency_key or "",
            digest,
            milliseconds(self._settings.idempotency_seconds),
            self._settings.queue_limit,
            share.max_queued or 0,
            milliseconds(when.delay_seconds),
            "" if when.deadline_seconds is None else milliseconds(when.deadline_seconds),
            self._not_after(),
            *(part for pair in fields.items() for part in pair),
        )
        failpoint("submit.after")
        if answer[0] == "conflict":
            raise IdempotencyConflict(param="Idempotency-Key")
        if answer[0] == "late":
            raise QueueUnavailable("the queue's Redis server took too long to answer; nothing was queued, try again")
        submitted = self._submitted(answer, job_id, share.max_queued)
        if submitted.created:
            self._learn_clock(milliseconds(submitted.job.created_at))
        return submitted

    def claim(self, lane: str, worker: str) -> Claim | None:
        """Take the job of the lane whose turn it is, for an attempt; None if this worker is to take nothing now.

        After QueueUnavailable it may have been granted all the same: see `disown`.
        """
        failpoint("claim.before")
        ageing = milliseconds(self._settings.ageing_seconds)
        answer = self._claims.call("claim", lane, worker, self._lease_ms, ageing, self._not_after())
        failpoint("claim.after")
        self._learn_clock(answer[1])
        if answer[0] != "claimed":
            return None
        job = self._read(answer[2], _pairs(answer[3]))
        left = None if job.deadline is None else job.deadline - answer[1] / 1000
        return Claim(job=job, fence=job.attempt, seconds_left=left)

    def renew(self, worker: str, fences: Mapping[str, int]) -> dict[str, Verdict]:
        """Extend the leases of running attempts (job id → fence); answers which of them must stop, and why."""
        if not fences:
            return {}
        failpoint("renew.before")
        flat = [part for pair in fences.items() for part in pair]
        now, *stopped = self._functions.call("renew", worker, self._lease_ms, *flat)
        failpoint("renew.after")
        self._learn_clock(now)
        return dict(zip(stopped[::2], stopped[1::2], strict=True))

    def disown(self, worker: str, held: Sequence[str], *, grace_seconds: float) -> int:
        """Give back, uncharged, what this worker was granted and knows nothing of, since the answer was lost.

        That is all of its running jobs but the `held` ones and those claimed within the grace; answers how many.
        """
        return int(self._functions.call("disown", worker, milliseconds(grace_seconds), *held))

    def report(self, job_id: str, fence: int, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Append events (type, data) of a running attempt. Raises Superseded."""
        flat = [part for name, data in events for part in (name, json.dumps(data, separators=(",", ":")))]
        if self._functions.call("report", job_id, fence, *flat) == "superseded":
            raise Superseded()

    def save_checkpoint(self, job_id: str, fence: int, checkpoint: dict[str, Any]) -> None:
        """Keep what a later attempt needs to go on: `files` (name → artifact digest) and more. Raises Superseded."""
        self.report(job_id, fence, [("$checkpoint", checkpoint)])

    def finish(
        self,
        job_id: str,
        fence: int,
        state: EndState,
        *,
        result: Any = None,
        failure: Failure | None = None,
        is_dead: bool = False,
    ) -> None:
        """End a job, once. Asking again with the same fence is harmless; raises Superseded for an old one.

        `is_dead`: a failure that is kept as a dead letter, since trying again could help and tries are used up.
        """
        stored = "" if result is None else self._stored(json.dumps(result, separators=(",", ":")))
        reason = "" if failure is None else failure.model_dump_json()
        keep_dead = milliseconds(self._settings.dead_letter_seconds) if is_dead else ""
        failpoint("finish.before")
        verdict = self._functions.call("finish", job_id, fence, state, stored, reason, keep_dead)
        failpoint("finish.after")
        if verdict == "superseded":
            raise Superseded()

    def release(self, job_id: str, fence: int) -> None:
        """Give a running job back to its lane uncharged. Raises Superseded."""
        failpoint("release.before")
        self._release(job_id, fence, 0, "")
        failpoint("release.after")

    def retry(self, job_id: str, fence: int, failure: Failure, delay_seconds: float) -> None:
        """Give back a job that failed for a passing reason, to be claimed after the delay. Raises Superseded."""
        self._release(job_id, fence, milliseconds(delay_seconds), failure.model_dump_json())

    # With `owner`, another owner's job is an UnknownJob to the next four.

    def cancel(self, job_id: str, *, owner: str | None = None) -> Job:
        """Cancel a queued job at once, ask a running one to stop; an ended one stays as it is. Raises UnknownJob."""
        return self._told("cancel", job_id, owner)

    def pause(self, job_id: str, *, owner: str | None = None) -> Job:
        """Hold a queued job back; a running one is given back, and held. An ended one stays. Raises UnknownJob."""
        return self._told("pause", job_id, owner)

    def resume(self, job_id: str, *, owner: str | None = None) -> Job:
        """Let a paused job go on. Raises UnknownJob."""
        return self._told("resume", job_id, owner)

    def pause_lane(self, lane: str = SERVICE) -> None:
        """Let no more jobs of a lane, or of the whole service, be claimed; running ones go on, new ones queue."""
        self._functions.call("pause_lane", lane)

    def resume_lane(self, lane: str = SERVICE) -> None:
        self._functions.call("resume_lane", lane)

    def requeue_dead(self, job_id: str, *, owner: str | None = None) -> Submitted:
        """A dead letter's work as a new job; the old one keeps its end. Asked again, it answers with the same job.

        Raises UnknownJob, Conflict if the job is no dead letter, QueueFull.
        """
        lane = self.get(job_id, owner=owner).lane
        with self.guard():
            if digest := reference(self.redis.get(f"{PREFIX}spec:{job_id}")):
                # The new record will refer to it as well: young, no collector takes it meanwhile.
                self._artifacts.refresh(digest)
        new_id, limit = _new_id(), self._settings.queue_limit
        answer = self._functions.call("requeue_dead", job_id, new_id, ticket_message(lane), limit)
        if answer[0] == "missing":
            raise unknown_job(job_id)
        if answer[0] == "not_dead":
            raise Conflict(f"job {job_id} is {answer[1]} and no dead letter; submit it anew instead", param="job_id")
        return self._submitted(answer, new_id, None)

    def _told(self, function: str, job_id: str, owner: str | None) -> Job:
        if owner is not None:
            self.get(job_id, owner=owner)
        if self._functions.call(function, job_id) == "missing":
            raise unknown_job(job_id)
        return self.get(job_id)

    def _release(self, job_id: str, fence: int, delay_ms: int, failure: str) -> None:
        if self._functions.call("release", job_id, fence, delay_ms, failure) == "superseded":
            raise Superseded()

    def _submitted(self, answer: Sequence[Any], new_id: str, owner_limit: int | None) -> Submitted:
        if answer[0] == "full":
            _, what, first, second = answer
            if what == "memory":
                raise _memory_full(int(first), int(second))
            limit = self._settings.queue_limit if what == "all" else owner_limit or 0
            raise _queue_full(what, first, limit, float(second))
        _, job_id, spec, fields = answer
        # Not by the verdict: a call that Redis' client sent twice (the first answer was lost) finds its own job.
        return Submitted(job=self._read(spec, _pairs(fields)), created=job_id == new_id)

    def _stored(self, text: str) -> str:
        """The text itself, or a reference to the artifact that holds it."""
        raw = text.encode()
        if len(raw) <= INLINE_BYTES:
            return text
        failpoint("artifact.before")
        digest = self._artifacts.put(raw).digest
        failpoint("artifact.after")
        stored = {"$artifact": digest, "refers_to": [f"artifact-{named}" for named in media_references(text)]}
        return json.dumps(stored, separators=(",", ":"))


def _queue_full(whose: str, queued: int, limit: int, rate: float) -> QueueFull:
    seconds = UNKNOWN_RETRY_SECONDS
    if rate > 0:
        seconds = min(max((queued - limit * (1 - ROOM)) / rate, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
    who = "the service has" if whose == "all" else "this API key has"
    return QueueFull(
        f"{who} {queued} queued jobs, and the limit is {limit}; come back in {seconds:.0f} s", retry_after=seconds
    )


def _memory_full(used: int, limit: int) -> QueueFull:
    return QueueFull(
        f"the queue's server uses {used / 2**20:.0f} of {limit / 2**20:.0f} MB, and new jobs are refused above four "
        "fifths: wait until jobs have ended and are forgotten (TANDEM_RESULT_SECONDS), or give it more memory",
        retry_after=UNKNOWN_RETRY_SECONDS,
    )


def _new_id() -> str:
    return f"job_{uuid.uuid4().hex[:24]}"


def _pairs(flat: Any) -> dict[str, str]:
    """A hash as a function returns it, whichever protocol version the answer came in."""
    return dict(flat) if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
