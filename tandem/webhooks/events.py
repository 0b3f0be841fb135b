"""The events that webhook endpoints are told of, in OpenAI's form: `client.webhooks.unwrap` reads them.

Keys (written by transitions/webhooks.lua): `tandem:webhook-event:<id>` the message's body, which Redis forgets when
no try of it can be left; `tandem:messages` sorted set of `<endpoint> <event>` by when the next try is due;
`tandem:announcements` sorted set of ended jobs whose owners have endpoints that are still to be told.
"""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tandem.errors import QueueUnavailable, UnknownJob
from tandem.function_library import PREFIX, FunctionLibrary
from tandem.job import Job
from tandem.job_store import JobStore
from tandem.webhooks.endpoints import Endpoint, EndpointStore
from tandem.webhooks.event_types import EventType
from tandem.webhooks.job_events import events_of
from tandem.webhooks.schedule import LONGEST_RETRY_AFTER, TRIES

logger = logging.getLogger(__name__)

KEEP_SECONDS = TRIES * LONGEST_RETRY_AFTER
"""How long an event is kept: until its last try is over, even if each pause is the longest that may be asked for."""


class WebhookEvent(BaseModel):
    """The body of a message, in OpenAI's shape."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["event"] = "event"
    created_at: int
    """Seconds since the epoch."""
    type: EventType
    data: dict[str, Any]
    """`id` names what the event is about; of our own `job.*` events there is more."""


class WebhookEvents:
    """Announces events to the endpoints of an owner. Every method raises QueueUnavailable."""

    def __init__(self, jobs: JobStore, endpoints: EndpointStore) -> None:
        self._jobs = jobs
        self._endpoints = endpoints
        self._functions = FunctionLibrary(jobs.redis, jobs.guard)

    def announce(self, owner: str, type: EventType, data_id: str, data: Mapping[str, Any] | None = None) -> None:  # noqa: A002
        """Let an owner's endpoints be told of an event, those that ask for its type and are not disabled.

        An event of one type about one thing is announced once: again, it does nothing.
        """
        self._announce(self._endpoints.list(owner), type, data_id, data or {})

    def announce_ended_jobs(self, limit: int, lease_seconds: float) -> int:
        """Announce the ends of jobs that are still to be announced, `limit` of them at most; answers how many.

        They are leased meanwhile: if this process dies, another announces them later.
        """
        job_ids = self._functions.call("take_due", "announcements", limit, round(lease_seconds * 1000))
        endpoints: dict[str, list[Endpoint]] = {}
        for job_id in job_ids:
            try:
                self._announce_end(self._jobs.get(job_id), endpoints)
            except UnknownJob:
                logger.warning("job %s is forgotten, and its end was not announced", job_id)
            except QueueUnavailable:
                raise
            except Exception:
                # Tried again, it would fail again, and hold up the others each time.
                logger.exception("the end of job %s cannot be announced", job_id)
        if job_ids:
            with self._jobs.guard():
                self._jobs.redis.zrem(f"{PREFIX}announcements", *job_ids)
        return len(job_ids)

    def _announce_end(self, job: Job, endpoints: dict[str, list[Endpoint]]) -> None:
        """`endpoints` are those that were read already, by owner."""
        if job.owner not in endpoints:
            endpoints[job.owner] = self._endpoints.list(job.owner)
        for type_, data in events_of(job).items():
            self._announce(endpoints[job.owner], type_, data["id"], data)

    def _announce(
        self,
        endpoints: Sequence[Endpoint],
        type: EventType,  # noqa: A002 - OpenAI's word
        data_id: str,
        data: Mapping[str, Any],
    ) -> None:
        asking = [one.record.id for one in endpoints if one.disabled_at is None and type in one.record.event_types]
        if not asking:
            return
        event = WebhookEvent(
            id=event_id(type, data_id), created_at=int(time.time()), type=type, data={"id": data_id, **data}
        )
        self._functions.call("announce", event.id, event.model_dump_json(), round(KEEP_SECONDS * 1000), *asking)


def event_id(type: EventType, data_id: str) -> str:  # noqa: A002 - OpenAI's word
    """The same for the same event, whoever announces it."""
    return "evt_" + hashlib.sha256(f"{type} {data_id}".encode()).hexdigest()[:24]
