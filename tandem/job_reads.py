"""Reading jobs: one, lists, counts, and how the lanes stand."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tandem.artifacts import ArtifactStore
from tandem.errors import UnknownJob
from tandem.function_library import PREFIX
from tandem.job import Failure, Job, JobKind, JobState
from tandem.outages import Outage
from tandem.specs import PRIORITIES
from tandem.specs.media import ARTIFACT

PAGE_CHUNK = 100
"""Records read in one round trip while a list is filtered."""
DRAIN_SECONDS = 60.0
"""Over which the rate of ended jobs is averaged, as in transitions/record.lua, which counts them."""
SERVICE = "*"
"""Stands for all lanes where a lane is named to be paused."""


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """How one lane stands."""

    lane: str
    ready: int
    """Jobs that a worker could take now."""
    paused_since: float | None
    """Seconds since the epoch; None if it is not paused itself."""


@dataclass(frozen=True, slots=True)
class OwnerQueue:
    """What one owner has waiting."""

    queued: int
    ended_per_second: float
    """Jobs, averaged over the last minute."""


class JobReader:
    """Reads of the job store; nothing here changes a job. Every method raises QueueUnavailable."""

    def __init__(self, client: Any, artifacts: ArtifactStore) -> None:
        self.redis = client
        self.guard = Outage().guard
        """Around every call of this store's server, and of the stores beside it."""
        self._artifacts = artifacts

    def get(self, job_id: str, *, owner: str | None = None) -> Job:
        """The job's record. Raises UnknownJob; with `owner`, also for another owner's."""
        with self.guard(), self.redis.pipeline(transaction=True) as pipe:
            pipe.get(f"{PREFIX}spec:{job_id}")
            pipe.hgetall(f"{PREFIX}job:{job_id}")
            spec, fields = pipe.execute()
        if not fields or owner not in (None, fields["owner"]):
            raise unknown_job(job_id)
        return self._read(spec, fields)

    def list(
        self,
        *,
        state: JobState | None = None,
        kind: JobKind | None = None,
        model: str | None = None,
        owner: str | None = None,
        after: int | None = None,
        limit: int = 20,
    ) -> list[Job]:
        """Jobs, newest first, that match every filter given; `after` is the last one's `sequence`."""
        wanted = {"state": state, "kind": kind, "model": model, "owner": owner}
        index = self._shortest([f"jobs:{name}:{value}" for name, value in wanted.items() if value] or ["jobs"])
        found: list[Job] = []
        upper = "+inf" if after is None else f"({after}"
        while len(found) < limit:
            chunk, upper = self._chunk(index, upper)
            if not chunk:
                break
            found += [
                job for job in chunk if all(getattr(job, name) == value for name, value in wanted.items() if value)
            ]
        return found[:limit]

    def dead_letters(self, *, owner: str | None = None, after: str | None = None, limit: int = 20) -> Sequence[Job]:
        """Jobs whose attempts are used up and that nobody has requeued, the latest death first."""
        start = 0
        if after is not None:
            if owner is not None:
                self.get(after, owner=owner)
            with self.guard():
                rank = self.redis.zrevrank(f"{PREFIX}dead", after)
            if rank is None:
                raise UnknownJob(f"`after` names {after!r}, which is no dead letter", param="after")
            start = rank + 1
        found: list[Job] = []
        while len(found) < limit:
            # By rank: one sweep buries many in the same millisecond.
            with self.guard():
                ids = self.redis.zrange(f"{PREFIX}dead", start, start + limit - 1, desc=True)
            if not ids:
                break
            found += [job for job in self.many(ids) if owner in (None, job.owner)]
            start += len(ids)
        return found[:limit]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self.guard(), self.redis.pipeline(transaction=False) as pipe:
            for state in JobState:
                pipe.zcard(f"{PREFIX}jobs:state:{state}")
            return dict(zip([str(state) for state in JobState], pipe.execute(), strict=True))

    def owner_queue(self, owner: str) -> OwnerQueue:
        """How many jobs an owner has queued, and how fast they end."""
        with self.guard(), self.redis.pipeline(transaction=False) as pipe:
            pipe.hget(f"{PREFIX}queued", owner)
            pipe.hget(f"{PREFIX}drained", owner)
            pipe.time()
            queued, drained, (seconds, microseconds) = pipe.execute()
        rate = 0.0
        if drained:
            at_ms, rate = (float(part) for part in drained.split())
            rate *= math.exp((at_ms / 1000 - seconds - microseconds / 1e6) / DRAIN_SECONDS)
        return OwnerQueue(int(queued or 0), rate)

    def lanes(self) -> Sequence[LaneStatus]:
        """Every lane that ever had a job, by name."""
        with self.guard(), self.redis.pipeline(transaction=True) as pipe:
            pipe.hkeys(f"{PREFIX}lanes")
            pipe.hgetall(f"{PREFIX}ready")
            pipe.hgetall(f"{PREFIX}paused")
            known, ready, paused = pipe.execute()
        names = sorted({*known, *paused} - {SERVICE})
        with self.guard(), self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.zcard(f"{PREFIX}alone:{name}")
            alone = pipe.execute()
        return [
            LaneStatus(
                lane=name,
                ready=int(ready.get(name, 0)) + suspects,
                paused_since=int(paused[name]) / 1000 if name in paused else None,
            )
            for name, suspects in zip(names, alone, strict=True)
        ]

    def paused_since(self) -> float | None:
        """Since when the whole service is paused (seconds since the epoch); None if it is not."""
        with self.guard():
            since = self.redis.hget(f"{PREFIX}paused", SERVICE)
        return None if since is None else int(since) / 1000

    def artifact_references(self) -> Iterator[str]:
        """Digests of the artifacts that any job's spec, result or checkpoint refers to."""
        with self.guard():
            ids = self.redis.zrange(f"{PREFIX}jobs", 0, -1)
        for start in range(0, len(ids), PAGE_CHUNK):
            with self.guard(), self.redis.pipeline(transaction=False) as pipe:
                for job_id in ids[start : start + PAGE_CHUNK]:
                    pipe.get(f"{PREFIX}spec:{job_id}")
                    pipe.hmget(f"{PREFIX}job:{job_id}", "result", "checkpoint")
                answers = pipe.execute()
            for spec, (result, checkpoint) in zip(answers[::2], answers[1::2], strict=True):
                yield from (digest for stored in (spec, result) if (digest := reference(stored)))
                # Of one that lies in the artifact store itself, the record says what it refers to.
                yield from media_references(spec)
                yield from media_references(result)
                if checkpoint:
                    yield from json.loads(checkpoint)["files"].values()

    def ping(self) -> None:
        """Raises QueueUnavailable if the server does not answer."""
        with self.guard():
            self.redis.ping()

    def _shortest(self, indexes: Sequence[str]) -> str:
        """The index with the fewest jobs: what the others demand is looked for in their records."""
        if len(indexes) == 1:
            return indexes[0]
        with self.guard(), self.redis.pipeline(transaction=False) as pipe:
            for index in indexes:
                pipe.zcard(f"{PREFIX}{index}")
            sizes = dict(zip(indexes, pipe.execute(), strict=True))
        return min(indexes, key=sizes.__getitem__)

    def _chunk(self, index: str, upper: str) -> tuple[Sequence[Job], str]:
        with self.guard():
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
        last = f"({int(entries[-1][1])}" if entries else upper
        return self.many([job_id for job_id, _ in entries]), last

    def many(self, ids: Sequence[str]) -> Sequence[Job]:
        """Those of these jobs that are not forgotten, in this order."""
        with self.guard(), self.redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.get(f"{PREFIX}spec:{job_id}")
                pipe.hgetall(f"{PREFIX}job:{job_id}")
            answers = pipe.execute()
        # A job may be forgotten between the two reads.
        return [
            self._read(spec, fields)
            for spec, fields in zip(answers[::2], answers[1::2], strict=True)
            if fields and spec is not None
        ]

    def _read(self, spec: str, fields: Mapping[str, str]) -> Job:
        def seconds(name: str) -> float | None:
            return float(fields[name]) / 1000 if name in fields else None

        return Job(
            id=fields["id"],
            kind=fields["kind"],  # type: ignore[arg-type]  # pydantic checks it
            state=JobState(fields["state"]),
            owner=fields["owner"],
            model=fields["model"],
            lane=fields["lane"],
            priority=PRIORITIES[int(fields["priority"])],
            spec=self._loaded(spec),
            attempt=int(fields["attempt"]),
            crashes=int(fields.get("crashes", 0)),
            retries=int(fields.get("retries", 0)),
            cancel_requested="cancel_requested" in fields,
            paused="paused" in fields,
            dead="dead" in fields,
            requeued_from=fields.get("requeued_from"),
            requeued_as=fields.get("requeued_as"),
            webhook_note=fields.get("webhook_note"),
            worker=fields.get("worker"),
            progress=json.loads(fields["progress"]) if "progress" in fields else None,
            checkpoint=json.loads(fields["checkpoint"]) if "checkpoint" in fields else None,
            result=self._loaded(fields["result"]) if "result" in fields else None,
            failure=Failure.model_validate_json(fields["failure"]) if "failure" in fields else None,
            created_at=float(fields["created_at"]) / 1000,
            not_before=seconds("not_before"),
            deadline=seconds("deadline"),
            started_at=seconds("started_at"),
            finished_at=seconds("finished_at"),
            sequence=int(fields["sequence"]),
        )

    def _loaded(self, stored: str) -> Any:
        if digest := reference(stored):
            return json.loads(self._artifacts.read(digest))
        return json.loads(stored)


def reference(stored: str | None) -> str | None:
    """The artifact that holds a spec or result, if it does not stand in the record itself."""
    if stored is None or not stored.startswith('{"$artifact"'):
        return None
    return str(json.loads(stored)["$artifact"])


def media_references(stored: str | None) -> list[str]:
    """Digests of the images, sounds and other files that a spec or result names."""
    return sorted(set(ARTIFACT.findall(stored or "")))


def unknown_job(job_id: str) -> UnknownJob:
    return UnknownJob(f"there is no job {job_id!r}, or its time to live is over", param="job_id")
