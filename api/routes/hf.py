"""Hugging Face's inference API: what `InferenceClient(base_url=".../hf/models/<model>")` sends, for every task."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json, to_json
from sse_starlette import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from api.auth import Key
from api.dependencies import ApiDep, SubmitterDep
from api.hf_shapes import asked, shown
from api.hf_text_generation import GenerationStream, generation_error
from api.routes.openai.chat import create_chat_completion
from api.routes.openai.chat_answer import ChatCompletion
from api.routes.openai.chat_request import ChatRequest
from api.routes.openai.job_header import JOB_HEADER
from api.routes.openai.opened_stream import opened_stream
from api.routes.openai.scheduling_headers import SchedulingHeadersDep
from api.waiting import Waiting, while_connected
from tandem.adapters import is_adapter_id
from tandem.api_keys import ApiKey
from tandem.errors import InvalidRequest, TandemError
from tandem.job import JobEvent
from tandem.services import Services
from tandem.specs import FineTuneSpec, Media, NamedTask, Task, TextGenerationSpec, job_spec_adapter

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


CHAT_BODY: dict[str, Any] = {
    "requestBody": {
        "content": {
            JSON: {
                "schema": {"type": "object"},
                "example": {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
            }
        }
    }
}


class ModelInfo(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_pipeline_tag: Task
    """What the model does where the address names no task."""
    docker_label: None = None
    """Of TGI's shape, as is the next: this is another server."""
    router: str = "tandem"


@router.get("/{model:path}/health")
async def is_served(model: str, api: ApiDep, key: Key) -> dict[str, str]:
    """Whether jobs may name this model. 404 if not."""
    await run_in_threadpool(_default_task, api.services, model, key)
    return {"status": "ok"}


@router.get("/{model:path}/info")
async def model_info(model: str, api: ApiDep, key: Key) -> ModelInfo:
    """What `get_endpoint_info()` shows of a model. 404 if there is none of this name."""
    task = await run_in_threadpool(_default_task, api.services, model, key)
    return ModelInfo(model_id=model, model_pipeline_tag=task)


@router.post("/{model:path}/v1/chat/completions", openapi_extra=CHAT_BODY, response_model=ChatCompletion)
async def chat(
    model: str,
    request: Request,
    response: Response,
    api: ApiDep,
    submitter: SubmitterDep,
    scheduling: SchedulingHeadersDep,
) -> ChatCompletion | Response:
    """What `chat_completion()` sends, and OpenAI's clients with this model's address as their base URL. As
    POST /v1/chat/completions, but for the model, which is the address's whatever the body says.
    """
    body = await run_in_threadpool(_chat_request, await request.body(), model)
    return await create_chat_completion(body, request, response, api, submitter, scheduling)


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
    task = await run_in_threadpool(_default_task, api.services, model, submitter.key)
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
    is_streamed = isinstance(spec, TextGenerationSpec) and spec.stream
    if isinstance(spec, TextGenerationSpec) and spec.stream and len(spec.prompts) * spec.parameters.n > 1:
        raise InvalidRequest("`stream` is for one text: send one input, and no `n`", param="stream")
    submitted = await run_in_threadpool(submitter.submit, scheduling.on(spec))
    waiting = Waiting(api, submitted.job, is_shared=submitter.idempotency_key is not None)
    if is_streamed:
        told = partial(_told, GenerationStream(sent))
        return await opened_stream(told, request, waiting, submitted.job)
    async with waiting.cancelled_if_abandoned():
        job = await while_connected(request, waiting.end())
    answer = await run_in_threadpool(shown, task, sent, job.result, api.services.artifacts)
    headers = {JOB_HEADER: job.id}
    if isinstance(answer.content, bytes):
        return Response(answer.content, media_type=answer.media_type, headers=headers)
    return JSONResponse(answer.content, headers=headers)


async def _told(
    stream: GenerationStream, first: JobEvent | None, rest: AsyncIterator[JobEvent], waiting: Waiting
) -> AsyncIterator[ServerSentEvent]:
    """TGI's events; an error after the first of them is one too, since the status is sent."""
    async with waiting.cancelled_if_abandoned():
        try:
            if first is not None:
                for token in stream.add(first):
                    yield _event(token)
                async for event in rest:
                    for token in stream.add(event):
                        yield _event(token)
            for token in stream.finish((await waiting.result()).result):
                yield _event(token)
        except TandemError as error:
            yield _event(generation_error(error))


def _event(fields: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(to_json(fields).decode(), sep="\n")


def _chat_request(body: bytes, model: str) -> ChatRequest:
    """Raises InvalidRequest, RequestValidationError."""
    sent = _json_object(body)
    match sent.get("response_format"):
        case {"type": "json_object" | "json", "value": schema}:
            # The client makes TGI's older form of OpenAI's.
            sent["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
        case {"type": "regex", "value": regex}:
            sent["response_format"] = {"type": "regex", "regex": regex}
    try:
        return ChatRequest.model_validate({**sent, "model": model})
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _default_task(services: Services, model: str, key: ApiKey) -> Task:
    """Raises UnknownModel, UnknownAdapter."""
    if is_adapter_id(model) or (
        model not in services.catalogue and services.aliases.get(model, owner=key.owner) is not None
    ):
        return services.aliases.find(model, owner=key.owner, reach=key.reach, param="model").task
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
    return _json_object(body), False


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        sent = from_json(body)
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(sent, dict):
        raise InvalidRequest("the body must be a JSON object")
    return sent
