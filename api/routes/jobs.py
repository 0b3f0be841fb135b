"""Jobs: submit, look, list, cancel, pause, requeue, follow, fetch the result."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response
from fastapi.openapi.models import Example
from fastapi.responses import StreamingResponse
from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from api.auth import Reach
from api.dependencies import ApiDep, ServicesDep, SubmitterDep
from api.errors import ErrorBody, error_body
from api.views import JobDetail, JobView, Page
from api.waiting import succeeded
from tandem.errors import QueueUnavailable, ResultNotReady, UnknownArtifact
from tandem.events import BEGINNING, read_events
from tandem.job import JobEvent, JobKind, JobState
from tandem.job_store import Submitted
from tandem.specs import NAME_PATTERN, JobSpec

MAX_PAGE = 100
"""Jobs in one page: each record is read whole."""
HEARTBEAT_SECONDS = 15
"""A comment in a silent event stream, often enough for proxies that close idle connections after 30 s or more."""
EVENT_ID = r"^[0-9]{1,19}-[0-9]{1,19}$"
"""Two numbers of a Redis stream; those of 20 digits are beyond its 64 bits, or a billion years away."""

router = APIRouter(prefix="/jobs", tags=["jobs"])

EXAMPLES: dict[str, Example] = {
    "chat": {
        "summary": "Answer a question",
        "value": {
            "kind": "inference",
            "task": "text-generation",
            "model": "smollm2-135m-instruct",
            "inputs": [{"role": "user", "content": "What is the capital of France?"}],
            "parameters": {"max_new_tokens": 32},
        },
    },
    "embeddings": {
        "summary": "Embed two texts",
        "value": {
            "kind": "inference",
            "task": "feature-extraction",
            "model": "all-minilm-l6-v2",
            "inputs": ["a red apple", "a ripe fruit"],
        },
    },
    "image": {
        "summary": "Label an image; the catalogue chooses the model",
        "value": {"kind": "inference", "task": "image-classification", "inputs": "<base64, or file-… of an upload>"},
    },
    "scheduling": {
        "summary": "Say when and how it is run (any job)",
        "value": {
            "kind": "inference",
            "task": "text-generation",
            "model": "smollm2-135m-instruct",
            "inputs": "Once upon a time",
            "priority": "high",
            "delay_seconds": 30,
            "deadline_seconds": 600,
            "retry": {"max_retries": 5, "backoff_seconds": 1, "max_backoff_seconds": 60},
            "webhook": {"url": "https://example.com/hooks/tandem"},
            "metadata": {"customer": "17"},
        },
    },
    "finetune": {
        "summary": "Train an adapter on an uploaded file",
        "value": {
            "kind": "finetune",
            "model": "smollm2-135m-instruct",
            "training_file": "file-0123456789abcdef01234567",
            "suffix": "support",
            "hyperparameters": {"epochs": 2},
        },
    },
    "finetune-head": {
        "summary": 'Train a classifier on an encoder; rows are {"text": …, "label": …}',
        "value": {
            "kind": "finetune",
            "task": "text-classification",
            "model": "all-minilm-l6-v2",
            "training_file": "file-0123456789abcdef01234567",
            "suffix": "topics",
        },
    },
}


@router.post("", status_code=202, responses={200: {"model": JobDetail, "description": "The key's first job"}})
def submit_job(
    spec: Annotated[JobSpec, Body(openapi_examples=EXAMPLES)], submitter: SubmitterDep, response: Response
) -> JobDetail:
    """Queue a job. The answer comes at once; `Location` is where to follow it.

    Every job may say when and how it is run: `priority`, `delay_seconds` or `not_before`, `deadline_seconds` (it
    then ends as `expired`), `retry`, `webhook` and `metadata`.

    With an `Idempotency-Key` that was used before, and the same body, the answer is 200 and the job of the first
    time; with another body it is 409. 429 `queue_full`: come back after `Retry-After` seconds.
    """
    return _located(submitter.submit(spec), response)


def _located(submitted: Submitted, response: Response) -> JobDetail:
    """The answer to whoever asked for a new job: 202, or 200 if it was there already."""
    response.headers["Location"] = f"/v1/jobs/{submitted.job.id}"
    if not submitted.created:
        response.status_code = 200
    return JobDetail.of(submitted.job)


@router.get("")
def list_jobs(
    services: ServicesDep,
    reach: Reach,
    state: JobState | None = None,
    kind: JobKind | None = None,
    model: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: Annotated[str | None, Query(description="The `last_id` of the page before")] = None,
) -> Page[JobView]:
    """Jobs, newest first, without their specs and results."""
    cursor = None if after is None else services.jobs.get(after, owner=reach).sequence
    jobs = services.jobs.list(state=state, kind=kind, model=model, owner=reach, after=cursor, limit=limit + 1)
    return Page.of([JobView.of(job) for job in jobs], [job.id for job in jobs], limit=limit)


@router.get("/{job_id}")
def get_job(job_id: str, services: ServicesDep, reach: Reach) -> JobDetail:
    """A job as it stands, with its spec, and its result once it has one."""
    return JobDetail.of(services.jobs.get(job_id, owner=reach))


@router.get(
    "/{job_id}/artifacts/{artifact}",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file's bytes"}},
)
def get_result_file(job_id: str, artifact: str, services: ServicesDep, reach: Reach) -> StreamingResponse:
    """An image, a sound or another file of a job's result, which names it as `{"artifact", "media_type", …}`."""
    job = succeeded(services.jobs.get(job_id, owner=reach))
    file = find_file(job.result, artifact)
    if file is None or not services.artifacts.exists(digest := artifact.removeprefix("artifact-")):
        raise UnknownArtifact(f"the result of job {job_id} has no file {artifact!r}", param="artifact")
    return StreamingResponse(
        services.artifacts.chunks(digest),
        media_type=file["media_type"],
        # Never shown as a page of this service, whatever it is.
        headers={
            "Content-Disposition": "attachment",
            "Content-Length": str(file["bytes"]),
            "X-Content-Type-Options": "nosniff",
        },
    )


def find_file(value: Any, artifact: str) -> dict[str, Any] | None:
    """The file of this name somewhere in a result."""
    if isinstance(value, dict):
        if value.get("artifact") == artifact and "media_type" in value:
            return value
        value = list(value.values())
    if isinstance(value, list):
        return next((found for item in value if (found := find_file(item, artifact)) is not None), None)
    return None


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, services: ServicesDep, reach: Reach) -> JobDetail:
    """Cancel a queued job at once, and ask a running one to stop; an ended one stays as it is."""
    return JobDetail.of(services.jobs.cancel(job_id, owner=reach))


@router.post("/{job_id}/pause")
def pause_job(job_id: str, services: ServicesDep, reach: Reach) -> JobDetail:
    """Hold a queued job back until it is resumed. A running one stops within one step, keeps what it has (a training
    its checkpoint) and waits in the queue; an ended one stays as it is. Deadlines go on."""
    return JobDetail.of(services.jobs.pause(job_id, owner=reach))


@router.post("/{job_id}/resume")
def resume_job(job_id: str, services: ServicesDep, reach: Reach) -> JobDetail:
    """Let a paused job go on."""
    return JobDetail.of(services.jobs.resume(job_id, owner=reach))


@router.post(
    "/{job_id}/requeue",
    status_code=202,
    responses={
        200: {"model": JobDetail, "description": "It was requeued before: the job of that time"},
        409: {"model": ErrorBody, "description": "It is no dead letter"},
    },
)
def requeue_job(job_id: str, services: ServicesDep, reach: Reach, response: Response) -> JobDetail:
    """Do a dead letter's work anew, as a new job; `GET /v1/dead-letters` lists them.

    The dead letter stays as it ended, and names the new job in `requeued_as`. Its delay and deadline do not count
    again; its retries begin anew.
    """
    return _located(services.jobs.requeue_dead(job_id, owner=reach), response)


@router.get("/{job_id}/result", responses={409: {"model": ErrorBody, "description": "It has not ended yet"}})
def get_result(job_id: str, services: ServicesDep, reach: Reach) -> Any:
    """The result alone. A failed job answers with its failure, a cancelled or unfinished one with 409, an expired one
    with 504."""
    job = services.jobs.get(job_id, owner=reach)
    if not job.state.is_terminal:
        raise ResultNotReady(
            f"job {job_id} is {job.state}; GET /v1/jobs/{job_id}/events says when it ends", param="job_id"
        )
    return succeeded(job).result


@router.get(
    "/{job_id}/events",
    response_class=EventSourceResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "The events"},
        204: {"description": "The job has ended, and nothing comes after the id"},
    },
)
async def follow_job(
    job_id: str,
    api: ApiDep,
    reach: Reach,
    last_event_id: Annotated[
        str, Header(alias="Last-Event-ID", pattern=EVENT_ID, description="Go on after this event")
    ] = BEGINNING,
) -> Response:
    """The job's events as server-sent events: `state`, `progress`, `metrics`, `evaluation`, `tokens`, `retry`,
    `checkpoint`, `resumed`, `cancel`, `pause`, `resume`.

    From the beginning, or after `Last-Event-ID`, until the `state` event that ends the job. An `error` event means
    that the queue's server went away: connect again with the last id. 204: nothing comes after that id any more.
    """
    job = await run_in_threadpool(api.services.jobs.get, job_id, owner=reach)
    reader = read_events(api.events, job_id, last_event_id)
    first: JobEvent | None = None
    if job.state.is_terminal:
        # An EventSource connects again for ever unless it is told that nothing will come.
        first = await anext(reader, None)
        if first is None:
            return Response(status_code=204)
    return EventSourceResponse(_sent(first, reader), ping=HEARTBEAT_SECONDS, sep="\n")


async def _sent(first: JobEvent | None, rest: AsyncIterator[JobEvent | None]) -> AsyncIterator[ServerSentEvent]:
    if first is not None:
        yield _event(first)
    try:
        async for event in rest:
            if event is not None:
                yield _event(event)
    except QueueUnavailable as error:
        yield ServerSentEvent(error_body(error).model_dump_json(), event="error", sep="\n")


def _event(event: JobEvent) -> ServerSentEvent:
    # JSON has no NaN, which a diverging loss is: null, as in every other answer.
    data = to_json(event.data, inf_nan_mode="null").decode()
    return ServerSentEvent(data, event=event.type, id=event.id, sep="\n")
