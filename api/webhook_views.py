"""What the API takes and shows of webhook endpoints, in OpenAI's shapes."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator

from tandem.specs.base import MAX_URL_CHARACTERS, Spec
from tandem.webhooks.endpoints import Endpoint
from tandem.webhooks.event_types import EVENT_TYPES, EventType

MAX_NAME_CHARACTERS = 256
SHOWN_CHARACTERS = 4
"""Of a secret's end: enough to tell two apart, far too few to guess the rest."""

EndpointName = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS, examples=["training alerts"])]
EndpointUrl = Annotated[
    str, Field(min_length=1, max_length=MAX_URL_CHARACTERS, examples=["https://example.com/hooks/tandem"])
]
EventTypes = Annotated[
    tuple[EventType, ...],
    Field(min_length=1, max_length=2 * len(EVENT_TYPES), examples=[["fine_tuning.job.succeeded"]]),
]


def _without_repetitions(types: tuple[EventType, ...] | None) -> tuple[EventType, ...] | None:
    return None if types is None else tuple(dict.fromkeys(types))


class EndpointRequest(Spec):
    """A new endpoint."""

    name: EndpointName
    url: EndpointUrl
    event_types: EventTypes

    _once_each = field_validator("event_types")(_without_repetitions)


class EndpointChanges(Spec):
    """What is to be changed; what is left out stays as it is."""

    name: EndpointName | None = None
    url: EndpointUrl | None = None
    event_types: EventTypes | None = None
    """The complete set."""
    enabled: Literal[True] | None = None
    """Our own: tell an endpoint again that was disabled."""

    _once_each = field_validator("event_types")(_without_repetitions)


class SecretRotation(Spec):
    keep_old_secret_active_for_24_hours: bool = False
    """Messages are signed with both secrets for so long; otherwise the old one ends at once."""


class EndpointTest(Spec):
    event_type: EventType


class EndpointView(BaseModel):
    """A webhook endpoint. Times are seconds since the epoch; from `enabled` on, the fields are our own."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: tuple[EventType, ...]
    signing_secret_hint: str
    enabled: bool = Field(description="False: it failed for days, or answered 410, and is told nothing more")
    disabled_at: int | None
    failing_since: int | None = Field(description="Since when every try has failed")
    delivered_at: int | None = Field(description="When it last took a message")
    delivery_note: str | None = Field(description="How the last try went")

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        return cls(**_public(endpoint))


class EndpointWithSecret(EndpointView):
    """The same, with the secret that is shown this once."""

    signing_secret: str

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        return cls(**_public(endpoint), signing_secret=endpoint.secret)


class DeletedEndpoint(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class EndpointTestView(BaseModel):
    """What an endpoint answered to a test."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: EventType
    status_code: int
    success: Literal[True] = Field(default=True, description="That there was an answer; `status_code` says which")


class EventTypesView(BaseModel):
    """The types of events that endpoints can ask for."""

    object: Literal["list"] = "list"
    data: tuple[EventType, ...] = EVENT_TYPES


def _public(endpoint: Endpoint) -> dict[str, Any]:
    record = endpoint.record.model_dump(include={"id", "created_at", "updated_at", "name", "url", "event_types"})
    return record | {
        "signing_secret_hint": f"whsec_…{endpoint.secret[-SHOWN_CHARACTERS:]}",
        "enabled": endpoint.disabled_at is None,
        "disabled_at": _whole(endpoint.disabled_at),
        "failing_since": _whole(endpoint.failing_since),
        "delivered_at": _whole(endpoint.delivered_at),
        "delivery_note": endpoint.note,
    }


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
