"""What routes ask for: the process's stores, its settings and its reader of events."""

from dataclasses import dataclass
from typing import Annotated

import redis.asyncio
from fastapi import Depends, Header, Request

from tandem.services import Services
from tandem.settings import ApiSettings

MAX_KEY_CHARACTERS = 255
"""Characters of an Idempotency-Key (Stripe's limit, which clients expect)."""


@dataclass(frozen=True, slots=True)
class Api:
    """Everything of one API process, made once at its start."""

    settings: ApiSettings
    services: Services
    events: redis.asyncio.Redis


def _api(request: Request) -> Api:
    api: Api = request.app.state.api
    return api


def _services(request: Request) -> Services:
    return _api(request).services


ApiDep = Annotated[Api, Depends(_api)]
ServicesDep = Annotated[Services, Depends(_services)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY_CHARACTERS,
        description="A word of yours for this request. Sent again with the same body, it answers with the first job.",
    ),
]
