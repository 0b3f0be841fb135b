"""How a stream of text is opened: at its first text, so that a failure before it still has its HTTP status."""

from collections.abc import AsyncIterator, Callable

from fastapi import Request, Response
from sse_starlette import EventSourceResponse

from api.routes.jobs import HEARTBEAT_SECONDS
from api.routes.openai.job_header import JOB_HEADER
from api.waiting import Waiting, while_connected
from tandem.job import Job, JobEvent

TEXT_EVENTS = frozenset({"tokens", "tool_call"})

Sent = Callable[[JobEvent | None, AsyncIterator[JobEvent], Waiting], AsyncIterator[object]]
"""From the first event with text (None without one), those that follow, and the waiting for the job's end to what is
sent."""


async def opened_stream(sent: Sent, request: Request, waiting: Waiting, job: Job) -> Response:
    """A job's text as server-sent events. Raises what the job failed with, if that comes before any text."""
    events = waiting.events()
    async with waiting.cancelled_if_abandoned():
        first = await while_connected(request, _first_text(events, waiting))
    return event_stream(sent(first, events, waiting), job)


def event_stream(events: AsyncIterator[object], job: Job) -> Response:
    return EventSourceResponse(events, ping=HEARTBEAT_SECONDS, sep="\n", headers={JOB_HEADER: job.id})


async def _first_text(events: AsyncIterator[JobEvent], waiting: Waiting) -> JobEvent | None:
    """The first event with text; None if the job has succeeded without one. Raises what it failed with."""
    async for event in events:
        if event.type in TEXT_EVENTS:
            return event
    await waiting.result()
    return None
