"""The OpenAPI document: what FastAPI reads off the routes, with each error's status and an example of every body."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from api.errors import AUTHENTICATION_STATUS, error_body
from api.openapi_examples import Composer
from tandem.errors import (
    AuthenticationFailed,
    Conflict,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    QueueFull,
    QueueUnavailable,
    TandemError,
)

Json = dict[str, Any]

JSON = "application/json"
EVENTS = "text/event-stream"
ERROR_REF = {"$ref": "#/components/schemas/ErrorBody"}
SUBMITS = "x-tandem-priority"
"""A parameter of the doors that queue a job and wait for it."""
JOBS_PATH = "/v1/jobs"
RANGES = {"4XX": InvalidRequest(), "5XX": QueueUnavailable()}
"""Errors of all kinds, of which these are examples."""


def install(app: FastAPI) -> None:
    """Let the application's document be the one described here, made once, when it is first asked for."""
    read_off = app.openapi

    def document() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = described(read_off())
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def described(document: Json) -> Json:
    """The document, completed in place."""
    composer = Composer(document["components"]["schemas"])
    for path, operation in _operations(document):
        if "security" in operation:
            for error in _errors(path, operation):
                operation["responses"].setdefault(str(error.status), _error_response(error))
        for status, answer in operation["responses"].items():
            if status in RANGES and answer.get("content"):
                # FastAPI takes an error to be of the media type of the route's answers.
                answer["content"] = {JSON: {"schema": ERROR_REF}}
            _give_example(answer, composer, RANGES.get(status))
        _give_example(operation.get("requestBody", {}), composer, required_only=True)
        if _may_stream(document, operation):
            operation["responses"]["200"]["content"].setdefault(EVENTS, {"schema": {"type": "string"}})
    return document


def _may_stream(document: Json, operation: Json) -> bool:
    """Whether the request has a field `stream`: the answer is then one of two media types."""
    schema = operation.get("requestBody", {}).get("content", {}).get(JSON, {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    return "stream" in document["components"]["schemas"].get(name, {}).get("properties", {})


def _give_example(
    body: Json, composer: Composer, error: TandemError | None = None, *, required_only: bool = False
) -> None:
    """An example for a JSON body that has none of its own: of the error, or as the schema says."""
    media = body.get("content", {}).get(JSON)
    if media is None or "example" in media or "examples" in media:
        return
    if error is not None:
        media["example"] = error_body(error).model_dump()
    else:
        media["example"] = composer.example(media.get("schema", {}), required_only=required_only)


def _operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def _errors(path: str, operation: Json) -> Iterator[TandemError]:
    """The errors that the route may answer with. Whatever else it does stays documented as 4XX or 5XX."""
    parameters = operation.get("parameters", [])
    names = {parameter["name"] for parameter in parameters}
    has_body = "requestBody" in operation
    submits = SUBMITS in names or (path == JOBS_PATH and has_body)
    yield AuthenticationFailed()
    yield QueueUnavailable()
    if has_body or parameters:
        yield InvalidRequest("`limit`: Input should be less than or equal to 100", param="limit")
    if submits or any(parameter["in"] == "path" for parameter in parameters):
        yield NotFound()
    if has_body:
        yield PayloadTooLarge()
    if "Idempotency-Key" in names:
        yield IdempotencyConflict(param="Idempotency-Key")
    elif has_body:
        yield Conflict()
    if submits:
        yield QueueFull("this API key has 1000 queued jobs, and the limit is 1000; come back in 12 s")


def _error_response(error: TandemError) -> Json:
    headers: Json = {}
    if error.status == AUTHENTICATION_STATUS:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
    if error.retryable:
        headers["Retry-After"] = {"schema": {"type": "integer"}, "description": "Seconds after which to try again"}
    return {
        "description": (type(error).__doc__ or "").strip(),
        "content": {JSON: {"schema": ERROR_REF, "example": error_body(error).model_dump()}},
        **({"headers": headers} if headers else {}),
    }
