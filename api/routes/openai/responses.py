"""`/v1/responses`: text-generation jobs in the shape of OpenAI's newest API; waited for, streamed, or polled."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from api.auth import Reach
from api.dependencies import ApiDep, ServicesDep, SubmitterDep
from api.routes.openai.field_names import openai_names
from api.routes.openai.job_header import JOB_HEADER
from api.routes.openai.opened_stream import event_stream, opened_stream
from api.routes.openai.response_answer import ResponseView, response_of
from api.routes.openai.response_history import history_after, input_items, request_of
from api.routes.openai.response_items import ItemView, read_items
from api.routes.openai.response_request import FIELD_NAMES, ResponseRequest
from api.routes.openai.response_stream import BEFORE_THE_FIRST, ResponseStream
from api.routes.openai.scheduling_headers import SchedulingHeadersDep
from api.views import Deleted, Page
from api.waiting import Waiting, while_connected
from tandem.errors import InvalidRequest
from tandem.job import Job, JobEvent
from tandem.services import Services
from tandem.specs import TextGenerationSpec

MAX_PAGE = 100
"""Items of one page (OpenAI's limit)."""
CANCEL_SECONDS = 5.0
"""How long an answer waits for a cancelled job to end; a worker is told at once and stops within a step."""

router = APIRouter(prefix="/responses", tags=["openai"])
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "The response, or its events"}
}


@router.post("", response_model=ResponseView, responses=EVENT_STREAM)
async def create_response(
    body: ResponseRequest,
    request: Request,
    response: Response,
    api: ApiDep,
    submitter: SubmitterDep,
    scheduling: SchedulingHeadersDep,
) -> ResponseView | Response:
    """Answer a conversation: whole, with `stream: true` as typed server-sent events, with `background: true` at once
    with a response that is polled.

    The job behind it is named in the `x-tandem-job` header. A client that leaves cancels the job, unless it is in the
    background or came with an `Idempotency-Key` to come back with. `temperature` is 1 by default, as OpenAI documents
    it. How urgent it is says `service_tier` (`flex` is low, `priority` is high) or, before that, `x-tandem-priority`.
    """
    with openai_names("input", FIELD_NAMES):
        spec = await run_in_threadpool(_spec, body, api.services, submitter.key.reach)
        submitted = await run_in_threadpool(submitter.submit, scheduling.on(spec))
        job = submitted.job
        is_shared = body.background or submitter.idempotency_key is not None
        waiting = Waiting(api, job, is_shared=is_shared)
        if body.stream and not body.background:
            return await _streamed(body, request, waiting, job)
        if body.stream:
            return event_stream(ResponseStream(body, job).sent(waiting.events(), waiting), job)
        response.headers[JOB_HEADER] = job.id
        if not body.background:
            async with waiting.cancelled_if_abandoned():
                job = await while_connected(request, waiting.end())
    return response_of(body, job)


def _spec(body: ResponseRequest, services: Services, owner: str | None) -> TextGenerationSpec:
    """The job, with what it keeps of the request. Raises UnknownResponse, InvalidRequest."""
    history = []
    if body.previous_response_id is not None:
        history = history_after(
            services.responses.get(body.previous_response_id, owner, param="previous_response_id")
        )
    try:
        earlier = read_items(history)
    except ValidationError as error:
        raise InvalidRequest(
            f"the response {body.previous_response_id!r} cannot be continued, since a call in it is no JSON; send "
            "the conversation in `input`",
            param="previous_response_id",
        ) from error
    return body.spec(earlier).model_copy(update={"response": body.asked(history)})


async def _streamed(body: ResponseRequest, request: Request, waiting: Waiting, job: Job) -> Response:
    """Opened at the first output."""

    async def sent(first: JobEvent | None, rest: AsyncIterator[JobEvent], waiting: Waiting) -> AsyncIterator[object]:
        async with waiting.cancelled_if_abandoned():
            async for event in ResponseStream(body, job).sent(_joined(first, rest), waiting):
                yield event

    return await opened_stream(sent, request, waiting, job)


async def _joined(first: JobEvent | None, rest: AsyncIterator[JobEvent]) -> AsyncIterator[JobEvent]:
    if first is not None:
        yield first
        async for event in rest:
            yield event


@router.get("/{response_id}", response_model=ResponseView, responses=EVENT_STREAM)
async def get_response(
    response_id: str,
    api: ApiDep,
    reach: Reach,
    stream: bool = False,
    starting_after: Annotated[
        int, Query(ge=BEFORE_THE_FIRST, description="With `stream`: only events of a higher `sequence_number`")
    ] = BEFORE_THE_FIRST,
) -> ResponseView | Response:
    """A stored response as it stands; with `stream=true` its events, from the beginning or after one that was read.

    Responses are kept as long as their jobs, TANDEM_RESULT_SECONDS after their end.
    """
    if starting_after != BEFORE_THE_FIRST and not stream:
        raise InvalidRequest("`starting_after` needs `stream=true`", param="starting_after")
    job = await run_in_threadpool(api.services.responses.get, response_id, reach)
    body = request_of(job)
    if not stream:
        return response_of(body, job)
    waiting = Waiting(api, job, is_shared=True)
    return event_stream(ResponseStream(body, job).sent(waiting.events(), waiting, starting_after=starting_after), job)


@router.post("/{response_id}/cancel")
async def cancel_response(response_id: str, api: ApiDep, reach: Reach) -> ResponseView:
    """Cancel a response in the background; one that has ended stays as it is."""
    job = await run_in_threadpool(api.services.responses.get, response_id, reach)
    body = request_of(job)
    if not body.background:
        raise InvalidRequest(
            "only a response that was asked for with `background: true` can be cancelled; leave the others' request",
            param="response_id",
        )
    job = await run_in_threadpool(api.services.jobs.cancel, job.id)
    if not job.state.is_terminal:
        waiting = Waiting(api, job, is_shared=True)
        # If it takes longer, the answer says that it is still in progress.
        with suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_SECONDS):
                async for _ in waiting.events():
                    pass
        job = await waiting.job()
    return response_of(body, job)


@router.delete("/{response_id}")
def delete_response(response_id: str, services: ServicesDep, reach: Reach) -> Deleted:
    """Show a response no more, and stop it if it is in progress. The job behind it is forgotten in its own time."""
    services.responses.delete(response_id, reach)
    return Deleted(id=response_id, object="response")


@router.get("/{response_id}/input_items")
def list_input_items(
    response_id: str,
    services: ServicesDep,
    reach: Reach,
    order: Literal["asc", "desc"] = "desc",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: Annotated[str | None, Query(description="The `last_id` of the page before")] = None,
) -> Page[ItemView]:
    """The items that a response answers: those of the conversation before it, and its own."""
    items = input_items(services.responses.get(response_id, reach))
    if order == "desc":
        items.reverse()
    ids = [item.id for item in items]
    if after is not None:
        if after not in ids:
            raise InvalidRequest(f"`after` names the item {after!r}, which this response has not", param="after")
        start = ids.index(after) + 1
        items, ids = items[start:], ids[start:]
    return Page.of(items[: limit + 1], ids[: limit + 1], limit=limit)
