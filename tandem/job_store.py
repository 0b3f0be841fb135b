"""The store of jobs: one atomic server-side call for each change (transitions.lua), plain reads beside them."""

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tandem.artifacts import ArtifactStore
from tandem.errors import IdempotencyConflict, QueueUnavailable, Superseded, UnknownJob, WorkerLost
from tandem.job import Failure, Job, JobKind, JobState
from tandem.settings import Settings
from tandem.tickets import ticket_message

PREFIX = "tandem:"
LIBRARY = "tandem_1"

INLINE_BYTES = 64 * 1024
"""A larger spec or result lives in the artifact store; Redis keeps its digest (design: about 10 KB a record)."""
CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 1.5
"""A hung Redis is an error within this time; a request never hangs with it."""
CRASHES_ALLOWED = 3
"""A job whose worker was lost this often has failed: it may be what kills them."""
SWEEP_LIMIT = 500
"""Jobs handled in one sweeping call, to keep each call short."""
PAGE_CHUNK = 100
"""Records read in one round trip while a list is filtered."""

Verdict = Literal["lost", "cancelled"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A granted attempt: the job's record and the fence that every write must show."""

    job: Job
    fence: int


@dataclass(frozen=True, slots=True)
class Submitted:
    job: Job
    created: bool
    """False: the idempotency key named a job that was there already."""


def connect(url: str) -> Any:
    """A client whose calls end in seconds, whatever the server does.

    Typed as Any: the stubs of redis-py do not know that `decode_responses` makes every answer text.
    """
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        # One more try on a new connection: a pooled one may have died with a restarted server.
        # Every transition may be sent twice without harm: submit by its id, the others by their fence.
        retry=Retry(NoBackoff(), 1),
    )


@contextmanager
def queue_errors() -> Iterator[None]:
    """Turns what Redis' client raises, when the server is down, loading, full or hung, into QueueUnavailable."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.OutOfMemoryError) as error:
        raise QueueUnavailable(f"the queue's Redis server does not answer: {error}") from error


class JobStore:
    """All that is done with jobs. Thread-safe: clients of redis-py are."""

    def __init__(self, settings: Settings, artifacts: ArtifactStore) -> None:
        self.redis = connect(settings.redis_url)
        self._artifacts = artifacts
        self._lease_ms = int(settings.lease_seconds * 1000)
        self._keep_ms = int(settings.result_seconds * 1000)
        self._idempotency_ms = int(settings.idempotency_seconds * 1000)

    # Transitions

    def submit(
        self,
        *,
        kind: JobKind,
        model: str,
        lane: str,
        owner: str,
        spec: dict[str, Any],
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Queue a job: record, idempotency key, index and ticket in one call.

        Raises IdempotencyConflict if the key was used with another spec, QueueUnavailable.
        """
        job_id = f"job_{uuid.uuid4().hex[:24]}"
        body = json.dumps(spec, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
        verdict, known_id = self._call(
            "submit",
            job_id,
            owner,
            kind,
            model,
            lane,
            self._stored(body),
            ticket_message(job_id, lane),
            idempotency_key or "",
            hashlib.sha256(body.encode()).hexdigest(),
            self._idempotency_ms,
            self._keep_ms,
        )
        if verdict == "conflict":
            raise IdempotencyConflict(param="Idempotency-Key")
        return Submitted(job=self.get(known_id), created=verdict == "created")

    def claim(self, job_id: str, worker: str) -> Claim | None:
        """Take a queued job for an attempt; None if there is nothing to do (ended, taken, unknown)."""
        verdict, detail = self._call("claim", job_id, worker, self._lease_ms)
        if verdict != "claimed":
            return None
        return Claim(job=self.get(job_id), fence=int(detail))

    def renew(self, fences: dict[str, int]) -> dict[str, Verdict]:
        """Extend the leases of running attempts (job id → fence); answers which of them must stop, and why."""
        if not fences:
            return {}
        flat = [part for pair in fences.items() for part in pair]
        answer = self._call("renew", self._lease_ms, *flat)
        return dict(zip(answer[::2], answer[1::2], strict=True))

    def report(self, job_id: str, fence: int, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Append events (type, data) of a running attempt. Raises Superseded."""
        flat = [part for name, data in events for part in (name, json.dumps(data, separators=(",", ":")))]
        if self._call("report", job_id, fence, *flat) == "superseded":
            raise Superseded()

    def finish(
        self,
        job_id: str,
        fence: int,
        state: Literal[JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED],
        *,
        result: Any = None,
        failure: Failure | None = None,
    ) -> None:
        """End a job, once. Asking again with the same fence is harmless; raises Superseded for an old one."""
        stored = "" if result is None else self._stored(json.dumps(result, separators=(",", ":")))
        reason = "" if failure is None else failure.model_dump_json()
        if self._call("finish", job_id, fence, state, stored, reason) == "superseded":
            raise Superseded()

    def release(self, job_id: str, fence: int) -> None:
        """Give a running job back to its lane uncharged. Raises Superseded."""
        if self._call("release", job_id, fence) == "superseded":
            raise Superseded()

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, ask a running one to stop; an ended one stays as it is. Raises UnknownJob."""
        if self._call("cancel", job_id) == "missing":
            raise UnknownJob(f"there is no job {job_id!r}, or its time to live is over", param="job_id")
        return self.get(job_id)

    def reap(self) -> tuple[int, int]:
        """Take back the attempts whose lease is over: (queued again, failed for good)."""
        failure = Failure.of(WorkerLost(f"{CRASHES_ALLOWED} workers died or fell silent while they ran this job"))
        requeued, died = self._call("reap", SWEEP_LIMIT, CRASHES_ALLOWED, failure.model_dump_json())
        return requeued, died

    def ring_lost(self, grace_seconds: float) -> int:
        """Ring again for queued jobs whose ticket was lost on the way; answers how many."""
        with queue_errors():
            lanes = self.redis.smembers(f"{PREFIX}lanes")
        return sum(self._call("ring_lost", lane, int(grace_seconds * 1000), SWEEP_LIMIT) for lane in lanes)

    def prune(self) -> int:
        """Forget ended jobs whose time to live is over; answers how many."""
        return int(self._call("prune"))

    # Reads

    def get(self, job_id: str) -> Job:
        """The job's record. Raises UnknownJob."""
        with queue_errors():
            fields = self.redis.hgetall(f"{PREFIX}job:{job_id}")
        if not fields:
            raise UnknownJob(f"there is no job {job_id!r}, or its time to live is over", param="job_id")
        return self._read(fields)

    def list(
        self,
        *,
        state: JobState | None = None,
        kind: JobKind | None = None,
        model: str | None = None,
        after: int | None = None,
        limit: int = 20,
    ) -> list[Job]:
        """Jobs, newest first, that match every filter given; `after` is the last one's `sequence`."""
        index = "jobs"
        if state:
            index = f"jobs:state:{state}"
        elif model:
            index = f"jobs:model:{model}"
        elif kind:
            index = f"jobs:kind:{kind}"
        found: list[Job] = []
        upper = "+inf" if after is None else f"({after}"
        while len(found) < limit:
            chunk, upper = self._chunk(index, upper)
            if not chunk:
                break
            for job in chunk:
                if (state and job.state != state) or (kind and job.kind != kind):
                    continue
                if model and job.model != model:
                    continue
                found.append(job)
        return found[:limit]

    def next_ready(self, lane: str) -> str | None:
        """The id of the job that has waited longest in a lane."""
        with queue_errors():
            ids = self.redis.zrange(f"{PREFIX}ready:{lane}", 0, 0)
        return str(ids[0]) if ids else None

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with queue_errors(), self.redis.pipeline(transaction=False) as pipe:
            for state in JobState:
                pipe.zcard(f"{PREFIX}jobs:state:{state}")
            return dict(zip([str(state) for state in JobState], pipe.execute(), strict=True))

    def ping(self) -> None:
        """Raises QueueUnavailable if the server does not answer."""
        with queue_errors():
            self.redis.ping()

    def _chunk(self, index: str, upper: str) -> tuple[Sequence[Job], str]:
        with queue_errors():
            entries = self.redis.zrange(
                f"{PREFIX}{index}",
                upper,
                "-inf",
                desc=True,
                byscore=True,
                offset=0,
                num=PAGE_CHUNK,
                withscores=True,
            )
            with self.redis.pipeline(transaction=False) as pipe:
                for job_id, _ in entries:
                    pipe.hgetall(f"{PREFIX}job:{job_id}")
                records = pipe.execute()
        last = f"({int(entries[-1][1])}" if entries else upper
        # A job may be forgotten between the two reads.
        return [self._read(fields) for fields in records if fields], last

    def _read(self, fields: dict[str, Any]) -> Job:
        def seconds(name: str) -> float | None:
            return int(fields[name]) / 1000 if name in fields else None

        return Job(
            id=fields["id"],
            kind=fields["kind"],
            state=JobState(fields["state"]),
            owner=fields["owner"],
            model=fields["model"],
            lane=fields["lane"],
            spec=self._loaded(fields["spec"]),
            attempt=int(fields["attempt"]),
            crashes=int(fields["crashes"]),
            cancel_requested=fields["cancel_requested"] == "1",
            worker=fields.get("worker"),
            progress=json.loads(fields["progress"]) if "progress" in fields else None,
            result=self._loaded(fields["result"]) if "result" in fields else None,
            failure=Failure.model_validate_json(fields["failure"]) if "failure" in fields else None,
            created_at=int(fields["created_at"]) / 1000,
            started_at=seconds("started_at"),
            finished_at=seconds("finished_at"),
            sequence=int(fields["sequence"]),
        )

    def _stored(self, text: str) -> str:
        """The text itself, or a reference to the artifact that holds it."""
        raw = text.encode()
        if len(raw) <= INLINE_BYTES:
            return text
        return json.dumps({"$artifact": self._artifacts.put(raw).digest})

    def _loaded(self, stored: str) -> Any:
        value = json.loads(stored)
        if isinstance(value, dict) and set(value) == {"$artifact"}:
            return json.loads(self._artifacts.read(value["$artifact"]))
        return value

    # The server's function library

    def _call(self, function: str, *arguments: Any) -> Any:
        name = f"{LIBRARY}_{function}"
        with queue_errors():
            try:
                return self.redis.fcall(name, 0, *arguments)
            except redis.ResponseError as error:
                if "Function not found" not in str(error):
                    raise
                # A new or emptied server: give it the library, then ask again.
                self.redis.function_load(_library(), replace=True)
                return self.redis.fcall(name, 0, *arguments)


def _library() -> str:
    return resources.files("tandem").joinpath("transitions.lua").read_text(encoding="utf-8")
