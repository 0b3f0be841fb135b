"""The messages to webhook endpoints, each signed with its endpoint's own secret."""

import time

from tandem.errors import UnknownEndpoint
from tandem.function_library import PREFIX, FunctionLibrary
from tandem.job_store import JobStore
from tandem.webhooks.endpoints import EndpointStore
from tandem.webhooks.events import WebhookEvents
from tandem.webhooks.outbox import Due, Message, Verdict

DISABLE_SECONDS = 3 * 86_400.0
"""An endpoint at which every try has failed for so long, and at last all tries of one message, is told no more."""
ANNOUNCE_SECONDS = 30.0
"""How long the announcement of ended jobs is left to the process that has begun with it: some short calls each."""
ANNOUNCED_PORTIONS = 10
"""Portions of ended jobs that are announced before messages are sent again: by half a second's polls, more than a
thousand a second, which is above what the queue hands out."""


class EndpointOutbox:
    """An Outbox whose keys are `<endpoint> <event>`."""

    def __init__(self, jobs: JobStore, endpoints: EndpointStore, events: WebhookEvents) -> None:
        self._redis, self._guard = jobs.redis, jobs.guard
        self._functions = FunctionLibrary(jobs.redis, jobs.guard)
        self._endpoints = endpoints
        self._events = events

    def take(self, limit: int, lease_seconds: float) -> list[Due]:
        """What is due, the ends of jobs among it that nobody has announced yet."""
        for _ in range(ANNOUNCED_PORTIONS):
            if self._events.announce_ended_jobs(limit, ANNOUNCE_SECONDS) < limit:
                break
        answer = self._functions.call("take_messages", limit, round(lease_seconds * 1000))
        return [Due(key, tries) for key, tries in zip(answer[::2], answer[1::2], strict=True)]

    def message(self, key: str) -> Message | None:
        """None, and the message is given up, if its endpoint was deleted or disabled."""
        endpoint_id, event_id = key.split()
        try:
            endpoint = self._endpoints.get(endpoint_id)
        except UnknownEndpoint:
            endpoint = None
        with self._guard():
            body = self._redis.get(f"{PREFIX}webhook-event:{event_id}")
        if endpoint is None or endpoint.disabled_at is not None or body is None:
            self._functions.call("drop_message", endpoint_id, event_id)
            return None
        return Message(event_id, endpoint.record.url, body, endpoint.signer(time.time()))

    def settle(self, key: str, verdict: Verdict) -> None:
        endpoint_id, event_id = key.split()
        self._functions.call(
            "settle_message",
            endpoint_id,
            event_id,
            verdict.outcome,
            "" if verdict.retry_in is None else round(verdict.retry_in * 1000),
            verdict.note,
            round(DISABLE_SECONDS * 1000),
        )
