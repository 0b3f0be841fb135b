"""Webhook endpoints, as OpenAI's clients know them (`client.webhooks`): receivers that are told of events."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from api.auth import Owner, Reach
from api.dependencies import ApiDep, ServicesDep
from api.views import Page
from api.webhook_views import (
    DeletedEndpoint,
    EndpointChanges,
    EndpointRequest,
    EndpointTest,
    EndpointTestView,
    EndpointView,
    EndpointWithSecret,
    EventTypesView,
    SecretRotation,
)
from tandem.errors import InvalidRequest, UnknownEndpoint

router = APIRouter(tags=["webhooks"])


@router.post("/webhook_endpoints")
def create_endpoint(body: EndpointRequest, api: ApiDep, owner: Owner) -> EndpointWithSecret:
    """Name a URL that is told of your batches', trainings', responses' and jobs' ends.

    The answer holds the secret that signs its messages; it is shown this once. The URL must be https and public,
    unless the operator allows private ones (`TANDEM_WEBHOOK_PRIVATE`).
    """
    api.webhooks.check_endpoint(body.url)
    endpoint = api.services.webhook_endpoints.create(
        owner=owner, name=body.name, url=body.url, event_types=body.event_types
    )
    return EndpointWithSecret.of(endpoint)


@router.get("/webhook_endpoints")
def list_endpoints(
    services: ServicesDep,
    reach: Reach,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The `last_id` of the page before")] = None,
) -> Page[EndpointView]:
    """Your endpoints, newest first."""
    endpoints = services.webhook_endpoints.list(reach)
    ids = [endpoint.record.id for endpoint in endpoints]
    if after is not None:
        if after not in ids:
            raise UnknownEndpoint(f"`after` names {after!r}, which is no webhook endpoint of yours", param="after")
        endpoints = endpoints[ids.index(after) + 1 :]
    views = [EndpointView.of(endpoint) for endpoint in endpoints]
    return Page.of(views[:limit], [view.id for view in views], limit=limit)


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
def get_endpoint(webhook_endpoint_id: str, services: ServicesDep, reach: Reach) -> EndpointView:
    """An endpoint, and how its deliveries go."""
    return EndpointView.of(services.webhook_endpoints.get(webhook_endpoint_id, owner=reach))


@router.post("/webhook_endpoints/{webhook_endpoint_id}")
def update_endpoint(webhook_endpoint_id: str, body: EndpointChanges, api: ApiDep, reach: Reach) -> EndpointView:
    """Change an endpoint's name, URL or event types; `enabled: true` tells one again that was disabled."""
    if body.url is not None:
        api.webhooks.check_endpoint(body.url)
    endpoints = api.services.webhook_endpoints
    endpoint = endpoints.update(
        webhook_endpoint_id, owner=reach, name=body.name, url=body.url, event_types=body.event_types
    )
    if body.enabled:
        endpoint = endpoints.enable(webhook_endpoint_id, owner=reach)
    return EndpointView.of(endpoint)


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
def delete_endpoint(webhook_endpoint_id: str, services: ServicesDep, reach: Reach) -> DeletedEndpoint:
    """Delete an endpoint. What it has not been told yet is not sent any more."""
    services.webhook_endpoints.delete(webhook_endpoint_id, owner=reach)
    return DeletedEndpoint(id=webhook_endpoint_id)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret")
def rotate_secret(
    webhook_endpoint_id: str, services: ServicesDep, reach: Reach, body: SecretRotation | None = None
) -> EndpointWithSecret:
    """Give an endpoint a new secret, which is shown this once."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    rotated = services.webhook_endpoints.rotate_secret(webhook_endpoint_id, owner=reach, keep_old=keep_old)
    return EndpointWithSecret.of(rotated)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test")
async def try_endpoint(webhook_endpoint_id: str, body: EndpointTest, api: ApiDep, reach: Reach) -> EndpointTestView:
    """Send a sample of an event now, once, and tell what the endpoint answered. 400 if there is no answer."""
    endpoint = await run_in_threadpool(api.services.webhook_endpoints.get, webhook_endpoint_id, owner=reach)
    answer = await api.webhooks.try_endpoint(endpoint, body.event_type)
    if answer.status is None:
        raise InvalidRequest(f"the endpoint gave no answer: {answer.reason}", param="url")
    return EndpointTestView(
        webhook_endpoint_id=webhook_endpoint_id, event_type=body.event_type, status_code=answer.status
    )


@router.get("/webhook_event_types")
async def list_event_types() -> EventTypesView:
    """The types of events that endpoints can ask for."""
    return EventTypesView()
