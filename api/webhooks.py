"""Webhooks in the API: what is refused at submission, and the delivery, which runs beside the requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tandem.errors import InvalidRequest
from tandem.job_store import JobStore
from tandem.settings import ApiSettings
from tandem.specs import Scheduling
from tandem.webhooks.addresses import AddressRules
from tandem.webhooks.deliverer import Deliverer
from tandem.webhooks.destination import check_url
from tandem.webhooks.sender import Sender
from tandem.webhooks.signature import Signer


class Webhooks:
    def __init__(self, settings: ApiSettings) -> None:
        """Raises ConfigurationError for a secret that cannot be used."""
        secret = settings.webhook_secret
        self._signer = None if secret is None else Signer.of_setting(secret.get_secret_value())
        self._rules = AddressRules(allow_private=settings.webhook_private)

    def check(self, spec: Scheduling) -> None:
        """Raises InvalidRequest for a webhook that would not be told."""
        if spec.webhook is None:
            return
        if self._signer is None:
            raise InvalidRequest(
                "this service sends no webhooks: its operator has not set TANDEM_WEBHOOK_SECRET", param="webhook"
            )
        check_url(spec.webhook.url, self._rules)

    @asynccontextmanager
    async def delivered(self, jobs: JobStore) -> AsyncIterator[None]:
        """Tell webhooks while the block runs."""
        if self._signer is None:
            yield
            return
        telling = asyncio.create_task(Deliverer(jobs, Sender(self._signer, self._rules)).run(), name="webhooks")
        try:
            yield
        finally:
            telling.cancel()
            with suppress(asyncio.CancelledError):
                await telling
