"""A job's events, read as they come: `state`, `progress`, `metrics`, `evaluation`, `tokens`, `tool_call`,
`retry`, `checkpoint`, `published_checkpoint`, `data`, `warning`, `resumed`, `cancel`, `pause`, `resume`.

The stream's ids are the cursor: reading goes on after any of them. An event of an attempt that was lost is followed
by a `state` event with the next attempt's number; what a reader has collected from `tokens` then starts anew.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import redis.asyncio

from tandem import redis_connection
from tandem.function_library import PREFIX
from tandem.job import JobEvent, JobState
from tandem.outages import queue_errors

BLOCK_SECONDS = 5.0
"""How long one read waits: bounds how late a dead server is noticed."""
READ_COUNT = 500
"""Events of one read."""
MAX_READERS = 4096
"""Readers of one client at the same time: each blocks on a connection of its own (redis-py's default is 100, a
Redis server's 10,000)."""
BEGINNING = "0-0"
FIRST = "0-1"
"""The id of the event that says that the job was queued: before all that the server gives."""


def connect_async(url: str) -> redis.asyncio.Redis:
    """A client for readers: it answers or fails within a few seconds more than one blocking read."""
    return redis_connection.connect_async(url, socket_timeout=BLOCK_SECONDS * 2, max_connections=MAX_READERS)


async def read_events(
    client: redis.asyncio.Redis, job_id: str, after: str = BEGINNING
) -> AsyncIterator[JobEvent | None]:
    """Every event after the cursor, until the one that ends the job. None marks a silent interval.

    Ends at once, without an event, if the job has ended (or is forgotten) and nothing comes after the cursor.
    Raises QueueUnavailable when the server is gone; the reader may go on later from the last id.
    """
    key = f"{PREFIX}events:{job_id}"
    # The record is asked before the events are read: an end between the two is then read as an event. While events
    # come it is not asked again, for the end is one of them.
    submitted, is_over = await _record(client, job_id)
    if after == BEGINNING and submitted is not None:
        yield submitted
    while True:
        with queue_errors():
            answer = await client.xread(
                {key: after}, count=READ_COUNT, block=None if is_over else int(BLOCK_SECONDS * 1000)
            )
        entries = _entries(answer)
        if not entries:
            if is_over:
                return
            yield None
            _, is_over = await _record(client, job_id)
        for event_id, fields in entries:
            after = event_id
            event = JobEvent(event_id, fields["type"], json.loads(fields["data"]))
            yield event
            if event.ends_the_job:
                return


async def _record(client: redis.asyncio.Redis, job_id: str) -> tuple[JobEvent | None, bool]:
    """The first event of every job, and whether the job has ended; of one that is forgotten, None and True.

    That event is not in the stream, which costs more memory than a queued job's record.
    """
    with queue_errors():
        created_at, state = await client.hmget(f"{PREFIX}job:{job_id}", ["created_at", "state"])
    if created_at is None or state is None:
        return None, True
    data = {"state": str(JobState.QUEUED), "attempt": 0, "at": float(created_at) / 1000}
    return JobEvent(FIRST, "state", data), JobState(str(state)).is_terminal


def _entries(answer: Any) -> list[tuple[str, dict[str, str]]]:
    """The one stream's entries, whichever protocol version the answer came in."""
    if not answer:
        return []
    if isinstance(answer, dict):
        (batches,) = answer.values()
        return [entry for batch in batches for entry in (batch if isinstance(batch, list) else [batch])]
    ((_, entries),) = answer
    return list(entries)
