"""A job's events, read backwards: the newest first, page by page. events.py follows them as they come."""

import json
from collections.abc import Iterator
from typing import Any

from tandem.events import FIRST
from tandem.function_library import PREFIX
from tandem.job import Job, JobEvent, JobState
from tandem.job_store import JobStore

CHUNK = 200
"""Events of one read: a training step writes two or three of them."""


class EventLog:
    """The events that the queue's server still has of each job. Every method raises QueueUnavailable."""

    def __init__(self, jobs: JobStore) -> None:
        self._redis, self._guard = jobs.redis, jobs.guard

    def newest_first(self, job: Job, before: str | None = None) -> Iterator[JobEvent]:
        """Every event of a job that came before the event `before`; at last the one that says that it was queued."""
        if before == FIRST:
            return
        cursor = "+" if before is None else f"({before}"
        while True:
            with self._guard():
                entries = self._redis.xrevrange(_key(job.id), cursor, "-", count=CHUNK)
            for event_id, fields in entries:
                yield JobEvent(event_id, fields["type"], json.loads(fields["data"]))
            if len(entries) < CHUNK:
                break
            cursor = f"({entries[-1][0]}"
        yield JobEvent(FIRST, "state", {"state": str(JobState.QUEUED), "attempt": 0, "at": job.created_at})

    def append(self, job_id: str, type: str, data: dict[str, Any]) -> None:  # noqa: A002 - the event's own word
        """Add what is known of a job before any worker has it, such as a warning about what was asked."""
        with self._guard():
            self._redis.xadd(_key(job_id), {"type": type, "data": json.dumps(data, separators=(",", ":"))})


def _key(job_id: str) -> str:
    return f"{PREFIX}events:{job_id}"
