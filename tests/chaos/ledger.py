"""What was acknowledged to producers and what attempts produced, kept beside the job store; and the audit of both.

Every process of a storm appends to a file of its own, one line in one write: what it wrote before a SIGKILL is kept
by the kernel. A last line without its end is one that the process was writing when it died.
"""

import asyncio
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tandem.events import connect_async, read_events
from tandem.job import Job, JobEvent, JobState
from tandem.job_store import JobStore

EVERY_JOB = 1_000_000
"""More than any storm submits."""
SHOWN = 20
"""Faults in one message; more would hide the first."""


class Ledger:
    """The pages of one process. Thread-safe: a line is one write to a file opened for appending."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / f"ledger-{os.getpid()}.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def acknowledged(self, key: str, job_id: str) -> None:
        """The service has answered: the job with this idempotency key is queued."""
        self._append("acknowledged", key=key, job=job_id)

    def unanswered(self, key: str) -> None:
        """A submission failed, and it is not known whether it arrived."""
        self._append("unanswered", key=key)

    def cancelling(self, job_id: str) -> None:
        """The job is about to be cancelled."""
        self._append("cancelling", job=job_id)

    def produced(self, job: Job, started: float, ended: float, result: Any) -> None:
        """An attempt has its answer, and is about to hand it in. Times are of the system's monotonic clock."""
        self._append(
            "produced",
            job=job.id,
            fence=job.attempt,
            started=started,
            ended=ended,
            wall=time.time(),
            result=result,
        )

    def close(self) -> None:
        os.close(self._file)

    def _append(self, entry: str, **fields: Any) -> None:
        os.write(self._file, (json.dumps({"entry": entry, **fields}) + "\n").encode())


@dataclass(frozen=True, slots=True)
class Produced:
    started: float
    ended: float
    """Both of the system's monotonic clock, which all processes share."""
    wall: float
    """When it ended by the worker's own wall clock."""
    result: Any


@dataclass(slots=True)
class Books:
    """All pages of a folder, read together."""

    acknowledged: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Idempotency key → ids that were answered for it."""
    unanswered: int = 0
    cancelling: set[str] = field(default_factory=set)
    produced: dict[tuple[str, int], Produced] = field(default_factory=dict)
    """(job id, fence) → the attempt's answer."""

    @classmethod
    def read(cls, folder: Path) -> "Books":
        books = cls()
        for entry in _entries(folder):
            match entry["entry"]:
                case "acknowledged":
                    books.acknowledged[entry["key"]].add(entry["job"])
                case "unanswered":
                    books.unanswered += 1
                case "cancelling":
                    books.cancelling.add(entry["job"])
                case "produced":
                    attempt = (entry["job"], entry["fence"])
                    assert attempt not in books.produced, f"one attempt answered twice: {attempt}"
                    books.produced[attempt] = Produced(
                        entry["started"], entry["ended"], entry["wall"], entry["result"]
                    )
        return books


@dataclass(frozen=True, slots=True)
class Tally:
    """What an audit has counted."""

    acknowledged: int
    """Jobs whose producer was told that they are queued."""
    unanswered: int
    """Submissions without an answer; each was repeated with its idempotency key."""
    jobs: int
    ended: Mapping[str, int]
    """State → jobs."""
    attempts: int
    refused: int
    """Answers of attempts that came too late, of which nothing may be seen."""
    crashes: int
    """Lost leases that were charged to a job."""


def audit(folder: Path, jobs: JobStore, redis_url: str) -> Tally:
    """Holds the ledger against the store, when nothing runs any more. Fails with every contradiction."""
    books = Books.read(folder)
    records = _records(jobs)
    faults = [
        *_acknowledged_faults(books, records),
        *_end_faults(books, records),
        *asyncio.run(_event_faults(records, redis_url)),
        *(f"{id_} changed after its end" for id_, job in _records(jobs).items() if job != records.get(id_)),
    ]
    assert not faults, f"{len(faults)} contradictions:\n" + "\n".join(faults[:SHOWN])
    accepted = sum(1 for job in records.values() if (job.id, job.attempt) in books.produced)
    return Tally(
        acknowledged=len(books.acknowledged),
        unanswered=books.unanswered,
        jobs=len(records),
        ended=dict(Counter(str(job.state) for job in records.values())),
        attempts=sum(job.attempt for job in records.values()),
        refused=len(books.produced) - accepted,
        crashes=sum(job.crashes for job in records.values()),
    )


def _entries(folder: Path) -> Iterator[dict[str, Any]]:
    for page in sorted(folder.glob("ledger-*.jsonl")):
        for line in page.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def _records(jobs: JobStore) -> dict[str, Job]:
    return {job.id: job for job in jobs.list(limit=EVERY_JOB)}


def _acknowledged_faults(books: Books, records: Mapping[str, Job]) -> Iterator[str]:
    """An acknowledged job is there, and a submission that was repeated with its key made one job."""
    for key, ids in books.acknowledged.items():
        if len(ids) != 1:
            yield f"{key} was acknowledged as {sorted(ids)}"
        yield from (f"{id_} ({key}) was acknowledged and is lost" for id_ in ids if id_ not in records)
    keys = Counter(job.spec["key"] for job in records.values())
    yield from (f"{key} made {count} jobs" for key, count in keys.items() if count != 1)


def _end_faults(books: Books, records: Mapping[str, Job]) -> Iterator[str]:
    """A job has ended, with what its last attempt produced and nothing else."""
    for job in records.values():
        produced = books.produced.get((job.id, job.attempt))
        match job.state:
            case JobState.SUCCEEDED:
                if produced is None or job.result != produced.result:
                    yield f"{job.id} attempt {job.attempt} has {job.result}, its attempt produced {produced}"
            case JobState.FAILED:
                if not job.spec.get("fails") or job.result is not None:
                    yield f"{job.id} failed: {job.failure}, result {job.result}"
            case JobState.CANCELLED:
                if job.id not in books.cancelling or job.result is not None:
                    yield f"{job.id} is cancelled, which nobody asked for, or has a result: {job.result}"
            case _:
                yield f"{job.id} is {job.state}"


async def _event_faults(records: Mapping[str, Job], redis_url: str) -> list[str]:
    """A job's stream tells of one end, which is its last event and the record's."""
    faults = []
    client = connect_async(redis_url)
    try:
        for job in records.values():
            if not job.state.is_terminal:
                # Said already; a reader would wait for the end of its stream.
                continue
            events = [event async for event in read_events(client, job.id) if event is not None]
            # A reader stops at an end; what would come after one is asked for besides.
            events += [event async for event in read_events(client, job.id, events[-1].id) if event is not None]
            faults += [f"{job.id}: {fault}" for fault in _stream_faults(job, events)]
    finally:
        await client.aclose()
    return faults


def _stream_faults(job: Job, events: list[JobEvent]) -> Iterator[str]:
    ends = [event for event in events if event.ends_the_job]
    if len(ends) != 1 or ends[0] is not events[-1]:
        yield f"its stream ends {len(ends)} times: {[event.data for event in ends]}, last {events[-1]}"
    elif (ends[0].data["state"], ends[0].data["attempt"]) != (job.state, job.attempt):
        yield f"its stream ends with {ends[0].data}, its record with {job.state}, attempt {job.attempt}"
    fences = [event.data["attempt"] for event in events if event.type == "state"]
    if fences != sorted(fences):
        yield f"its stream tells of attempts in the order {fences}"
