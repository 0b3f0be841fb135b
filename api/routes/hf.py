"""Hugging Face's inference API: what `InferenceClient(base_url=".../hf/models/<model>")` sends, for every task."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool

from api.dependencies import ApiDep, SubmitterDep
from api.hf_shapes import asked, shown
from api.routes.openai.job_header import JOB_HEADER
from api.routes.openai.scheduling_headers import SchedulingHeadersDep
from api.waiting import Waiting, while_connected
from tandem.adapters import is_adapter_id
from tandem.errors import InvalidRequest
from tandem.services import Services
from tandem.specs import FineTuneSpec, Media, NamedTask, Task, job_spec_adapter

JSON = "application/json"

router = APIRouter(prefix="/hf/models", tags=["huggingface"])

BODY: dict[str, Any] = {
    "requestBody": {
        "content": {
            JSON: {"schema": {"type": "object"}, "example": {"inputs": "I like this.", "parameters": {}}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        }
    }
}


@router.get("/{model:path}/health")
async def is_served(model: str, api: ApiDep) -> dict[str, str]:
    """Whether jobs may name this model. 404 if not."""
    await run_in_threadpool(_default_task, api.services, model)
    return {"status": "ok"}


@router.post("/{model:path}/pipeline/{task}", openapi_extra=BODY, response_model=None)
async def run_task(
    model: str,
    task: NamedTask,
    request: Request,
    api: ApiDep,
    submitter: SubmitterDep,
    scheduling: SchedulingHeadersDep,
    content_type: Annotated[str | None, Header()] = None,
) -> Response:
    """One task on a model: `{"inputs", "parameters"}`, or an image or a sound as the body itself.

    The answer has huggingface_hub's shape for the task; the job behind it is named in `x-tandem-job`. A client that
    leaves cancels the job, unless it sent an `Idempotency-Key` to come back with.
    """
    body = await request.body()
    return await _run(model, task, body, content_type, request, api, submitter, scheduling)


@router.post("/{model:path}", openapi_extra=BODY, response_model=None)
async def run_model(
    model: str,
    request: Request,
    api: ApiDep,
    submitter: SubmitterDep,
    scheduling: SchedulingHeadersDep,
    content_type: Annotated[str | None, Header()] = None,
) -> Response:
    """The same with the model's own task: the first that the catalogue names for it, or an adapter's."""
    body = await request.body()
    task = await run_in_threadpool(_default_task, api.services, model)
    return await _run(model, task, body, content_type, request, api, submitter, scheduling)


async def _run(
    model: str,
    task: Task,
    body: bytes,
    content_type: str | None,
    request: Request,
    api: ApiDep,
    submitter: SubmitterDep,
    scheduling: SchedulingHeadersDep,
) -> Response:
    sent, is_file = await run_in_threadpool(_read, api.services, body, content_type)
    if task == "feature-extraction" and isinstance(sent.get("inputs"), dict):
        task = "sentence-similarity"  # the client sends both to the one address of a model
    spec_fields = {"kind": "inference", "model": model, **asked(task, sent)}
    try:
        spec = job_spec_adapter.validate_python(spec_fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    if is_file and not isinstance(spec, FineTuneSpec) and not isinstance(spec.inputs, Media):
        raise InvalidRequest(
            f"{task} takes no file as its body; send JSON with `Content-Type: {JSON}`", param="inputs"
        )
    submitted = await run_in_threadpool(submitter.submit, scheduling.on(spec))
    waiting = Waiting(api, submitted.job, is_shared=submitter.idempotency_key is not None)
    async with waiting.cancelled_if_abandoned():
        job = await while_connected(request, waiting.end())
    answer = await run_in_threadpool(shown, task, sent, job.result, api.services.artifacts)
    headers = {JOB_HEADER: job.id}
    if isinstance(answer.content, bytes):
        return Response(answer.content, media_type=answer.media_type, headers=headers)
    return JSONResponse(answer.content, headers=headers)


def _default_task(services: Services, model: str) -> Task:
    """Raises UnknownModel, UnknownAdapter."""
    if is_adapter_id(model):
        return services.adapters.get(model, param="model").task
    return services.catalogue.get(model).tasks[0]


def _read(services: Services, body: bytes, content_type: str | None) -> tuple[dict[str, Any], bool]:
    """The body as a JSON object, and whether it is a file: then it is the input itself, in the artifact store.

    Curl says of JSON that it is a form unless it is told: no image, sound or video begins with a brace.
    """
    is_json = (content_type or "").partition(";")[0].strip().lower() == JSON or body.lstrip()[:1] == b"{"
    if not body:
        raise InvalidRequest("the request has no body; send JSON, or an image or a sound")
    if not is_json:
        return {"inputs": f"artifact-{services.artifacts.put(body).digest}"}, True
    try:
        sent = from_json(body)
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(sent, dict):
        raise InvalidRequest("the body must be a JSON object with `inputs`")
    return sent, False
