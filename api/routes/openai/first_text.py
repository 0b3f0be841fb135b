"""The moment at which a stream is opened: before it, a failure still has its HTTP status."""

from collections.abc import AsyncIterator

from api.waiting import Waiting
from tandem.job import JobEvent

TEXT_EVENTS = frozenset({"tokens", "tool_call"})


async def first_text(events: AsyncIterator[JobEvent], waiting: Waiting) -> JobEvent | None:
    """The first event with text; None if the job has succeeded without one. Raises what it failed with."""
    async for event in events:
        if event.type in TEXT_EVENTS:
            return event
    await waiting.result()
    return None
