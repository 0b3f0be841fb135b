"""Webhooks in the API: which URLs are refused, and the deliveries, which run beside the requests."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tandem.errors import InvalidRequest
from tandem.services import Services
from tandem.settings import ApiSettings
from tandem.specs import Scheduling
from tandem.webhooks.addresses import AddressRules
from tandem.webhooks.deliverer import Deliverer
from tandem.webhooks.destination import check_url
from tandem.webhooks.endpoint_outbox import EndpointOutbox
from tandem.webhooks.endpoints import Endpoint
from tandem.webhooks.event_types import EventType
from tandem.webhooks.events import WebhookEvent
from tandem.webhooks.job_outbox import JobOutbox
from tandem.webhooks.outbox import Message, Outbox
from tandem.webhooks.sender import Answer, Sender
from tandem.webhooks.signature import Signer

SAMPLE_ID = "sample"
"""What a test's event is about: nothing that exists."""


class Webhooks:
    def __init__(self, settings: ApiSettings) -> None:
        """Raises ConfigurationError for a secret that cannot be used."""
        secret = settings.webhook_secret
        self._signer = None if secret is None else Signer.of_setting(secret.get_secret_value())
        self._rules = AddressRules(allow_private=settings.webhook_private)
        self._sender = Sender(self._rules)

    def check(self, spec: Scheduling) -> None:
        """Raises InvalidRequest for a webhook that would not be told."""
        if spec.webhook is None:
            return
        if self._signer is None:
            raise InvalidRequest(
                "this service sends no webhooks of single jobs: its operator has not set TANDEM_WEBHOOK_SECRET; make "
                "a webhook endpoint instead (POST /v1/webhook_endpoints), which has a secret of its own",
                param="webhook",
            )
        check_url(spec.webhook.url, self._rules)

    def check_endpoint(self, url: str) -> None:
        """Raises InvalidRequest naming `url` for one that no webhook may go to."""
        check_url(url, self._rules, param="url")

    async def try_endpoint(self, endpoint: Endpoint, type: EventType) -> Answer:  # noqa: A002 - OpenAI's word
        """Send an endpoint one sample of an event, now and once."""
        now = time.time()
        event = WebhookEvent(
            id=f"evt_{secrets.token_hex(12)}", created_at=int(now), type=type, data={"id": SAMPLE_ID}
        )
        body = event.model_dump_json()
        return await self._sender.send(Message(event.id, endpoint.record.url, body, endpoint.signer(now)))

    @asynccontextmanager
    async def delivered(self, services: Services) -> AsyncIterator[None]:
        """Tell jobs' webhooks and endpoints while the block runs."""
        outboxes: list[Outbox] = [EndpointOutbox(services.jobs, services.webhook_endpoints, services.webhook_events)]
        if self._signer is not None:
            outboxes.append(JobOutbox(services.jobs, self._signer))
        telling = [asyncio.create_task(Deliverer(outbox, self._sender).run(), name="webhooks") for outbox in outboxes]
        try:
            yield
        finally:
            for task in telling:
                task.cancel()
            ended = await asyncio.gather(*telling, return_exceptions=True)
            self._sender.close()
            for outcome in ended:
                if isinstance(outcome, Exception):  # a cancellation is none
                    raise outcome
