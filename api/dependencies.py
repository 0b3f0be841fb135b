"""What routes ask for: the process's stores, its settings and its reader of events, and a way to submit."""

from dataclasses import dataclass, replace
from typing import Annotated

import redis.asyncio
from fastapi import Depends, Header, Request

from api.auth import Key
from api.rate_limit import STATE, rate_limit
from api.webhooks import Webhooks
from tandem.api_keys import ApiKey
from tandem.errors import QueueFull
from tandem.job_store import Share, Submitted
from tandem.services import Services
from tandem.settings import ApiSettings
from tandem.specs import AnyInferenceSpec, FineTuneSpec

MAX_KEY_CHARACTERS = 255
"""Characters of an Idempotency-Key (Stripe's limit, which clients expect)."""


@dataclass(frozen=True, slots=True)
class Api:
    """Everything of one API process, made once at its start."""

    settings: ApiSettings
    services: Services
    events: redis.asyncio.Redis
    webhooks: Webhooks


# Asynchronous although nothing waits: FastAPI runs the others in threads, of which a busy process has none to spare.


async def _api(request: Request) -> Api:
    api: Api = request.app.state.api
    return api


ApiDep = Annotated[Api, Depends(_api)]


async def _services(api: ApiDep) -> Services:
    return api.services


ServicesDep = Annotated[Services, Depends(_services)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY_CHARACTERS,
        description="A word of yours for this request. Sent again with the same body within 24 hours, it answers "
        "with what the first one made; with another body it is refused.",
    ),
]


@dataclass(frozen=True, slots=True)
class Submitter:
    """Submits for whoever sent the request, with its share and under its Idempotency-Key."""

    api: Api
    key: ApiKey
    idempotency_key: str | None
    request: Request

    def submit(self, spec: AnyInferenceSpec | FineTuneSpec) -> Submitted:
        """Queue a job. Raises what Submission.submit raises, and InvalidRequest for a webhook that cannot be told."""
        self.api.webhooks.check(spec)
        # Looked at before: a look that fails after the job is queued would answer that it was not.
        limit = rate_limit(self.key, self.api.services.jobs)
        setattr(self.request.state, STATE, limit)
        try:
            return self.api.services.submission.submit(
                spec,
                owner=self.key.owner,
                reach=self.key.reach,
                share=Share(self.key.weight, self.key.max_queued),
                idempotency_key=self.idempotency_key,
            )
        except QueueFull as error:
            if limit is not None:
                setattr(self.request.state, STATE, replace(limit, remaining=0, reset_seconds=error.retry_after))
            raise


async def _submitter(request: Request, api: ApiDep, key: Key, idempotency_key: IdempotencyKey = None) -> Submitter:
    return Submitter(api, key, idempotency_key, request)


SubmitterDep = Annotated[Submitter, Depends(_submitter)]
