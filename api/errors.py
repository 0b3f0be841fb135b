"""From an error to its HTTP answer: one table, one body shape (OpenAI's), for whatever goes wrong."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tandem.errors import (
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    QueueFull,
    TandemError,
    UnsupportedTask,
    WaitTimeout,
)
from tandem.job import Failure
from tandem.specs import METHODS, TASKS

AUTHENTICATION_STATUS = 401
BUSY_STATUS = 429
FIRST_SERVER_STATUS = 500
UNAVAILABLE_STATUS = 503
RETRY_AFTER_SECONDS = 1
"""When to ask again after a 503: a restarted Redis answers within about a second."""
CLIENT_GONE = 499
"""nginx's status for a client that left; only the access log sees it."""


class MethodNotAllowed(InvalidRequest):
    """This route does not take this method."""

    code = "method_not_allowed"
    status = 405


class ErrorView(BaseModel):
    """What went wrong. `code` is stable and what programs test; `param` names the field at fault."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorView


def error_type(status: int) -> str:
    """OpenAI's coarse class of an error."""
    if status == AUTHENTICATION_STATUS:
        return "authentication_error"
    if status == BUSY_STATUS:
        return "rate_limit_error"
    return "server_error" if status >= FIRST_SERVER_STATUS else "invalid_request_error"


def error_body(error: TandemError) -> ErrorBody:
    view = ErrorView(message=error.message, type=error_type(error.status), param=error.param, code=error.code)
    return ErrorBody(error=view)


def error_response(error: TandemError) -> JSONResponse:
    headers: dict[str, str] = {}
    if error.status == AUTHENTICATION_STATUS:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == UNAVAILABLE_STATUS:
        headers |= _retry_after(RETRY_AFTER_SECONDS)
    if isinstance(error, QueueFull):
        # OpenAI's clients wait for so long (up to two minutes) and try again.
        headers |= _retry_after(error.retry_after)
    # OpenAI's clients repeat a 409 and every 5xx by themselves. After a timeout the job goes on: a repeated request
    # would be a second one.
    if not error.retryable or isinstance(error, WaitTimeout):
        headers["x-should-retry"] = "false"
    return JSONResponse(error_body(error).model_dump(), error.status, headers)


def _retry_after(seconds: float) -> dict[str, str]:
    """HTTP knows whole seconds only; OpenAI's clients read the milliseconds first."""
    return {"Retry-After": str(max(1, math.ceil(seconds))), "Retry-After-Ms": str(math.ceil(seconds * 1000))}


def _classes(root: type[TandemError]) -> dict[str, type[TandemError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _classes(child)
    return found


def error_of(failure: Failure) -> TandemError:
    """A job's failure as the error that it was, so that it is answered with that error's status."""
    return _classes(TandemError).get(failure.code, TandemError)(failure.message, param=failure.param)


def install(app: FastAPI) -> None:
    """Answer every error of the routes in the one shape. What no handler knows ends in request_id's middleware."""
    app.add_exception_handler(TandemError, _tandem_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_gone)


async def _tandem_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, TandemError)
    return error_response(error)


async def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid_request(error.errors()))


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself raises: no route, wrong method, a body that it could not read."""
    assert isinstance(error, HTTPException)
    route = f"{request.method} {request.url.path}"
    if error.status_code == NotFound.status:
        return error_response(NotFound(f"there is no route {route}; /docs lists them"))
    if error.status_code == MethodNotAllowed.status:
        response = error_response(MethodNotAllowed(f"there is no {route}; /docs lists the methods of each route"))
        response.headers.update(error.headers or {})
        return response
    if error.status_code == PayloadTooLarge.status:
        return error_response(PayloadTooLarge(error.detail))
    return error_response(InvalidRequest(error.detail))


async def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


# Pydantic's errors in our words.

_FIELD = re.compile(r"[A-Za-z_][\w-]*")
_SOURCES = frozenset({"body", "query", "path", "header", "form"})
_UNION_LABELS = frozenset(
    {"inference", "finetune", "supervised", "dpo", "constrained-str", "str", "list", "tuple", *METHODS, *TASKS}
)
"""What pydantic puts into a location for the branch of a union that it tried: no part of the user's JSON."""


RESPONSE_FORMAT = "response_format"
_CLASS_NAME = re.compile(r"(?:[A-Z][a-z0-9]+){2,}")
"""The same, for the branches that are classes of ours: no field has such a name."""


def field_path(location: Sequence[str | int]) -> str:
    """`messages.0.content` for pydantic's ("body", "messages", 0, "content"), without the names of union branches."""
    parts = list(location[1:] if location and location[0] in _SOURCES else location)
    if RESPONSE_FORMAT in parts:
        # The branch's name follows it, and may be a field's as well: `json_schema` is both.
        branch = parts.index(RESPONSE_FORMAT) + 1
        del parts[branch : branch + 1]
    return ".".join(
        str(part)
        for part in parts
        if isinstance(part, int)
        or (_FIELD.fullmatch(part) and part not in _UNION_LABELS and not _CLASS_NAME.fullmatch(part))
    )


def invalid_request(errors: Sequence[Mapping[str, Any]]) -> TandemError:
    """One error that names the first field at fault, its limit, and how many more there are."""
    shown = [(_param(error), _message(error), error) for error in errors]
    first = _most_telling(shown)
    param, message, error = first
    others = len({other for other, _, _ in shown if other != param})
    more = f" (and {others} more fields)" if others else ""
    text = f"`{param}`: {message}{more}" if param else f"{message}{more}"
    unknown_task = param == "task" and error["type"] in {"union_tag_invalid", "literal_error"}
    return (UnsupportedTask if unknown_task else InvalidRequest)(text, param=param or None)


def _most_telling(shown: list[tuple[str, str, Mapping[str, Any]]]) -> tuple[str, str, Mapping[str, Any]]:
    """The first field's error. A union reports one for each branch: the one that is not about the type tells more."""
    param = shown[0][0]
    of_field = [entry for entry in shown if entry[0] == param or entry[0].startswith(f"{param}.")]
    return next((entry for entry in of_field if not entry[2]["type"].endswith("_type")), of_field[0])


def _param(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return ""
    path = field_path(error["loc"])
    if error["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        # The location ends at the union; the field that chooses its branch is named apart.
        discriminator = str(error["ctx"]["discriminator"]).strip("'")
        return f"{path}.{discriminator}" if path else discriminator
    return path


def _message(error: Mapping[str, Any]) -> str:
    """What is wrong and what is right."""
    context = error.get("ctx") or {}
    match error["type"]:
        case "json_invalid":
            return f"the body is not JSON: {context.get('error')} at character {error['loc'][-1]}"
        case "extra_forbidden":
            return "unsupported parameter; leave it out"
        case "union_tag_invalid":
            return f"it is {context['tag']!r}; it must be one of {context['expected_tags']}"
        case "union_tag_not_found":
            return "is missing; it says which kind this is"
        case "missing" if not field_path(error["loc"]):
            return "the request has no body; send JSON with `Content-Type: application/json`"
        case "missing":
            return "is missing"
        case "value_error":
            return str(context["error"])
        case "model_attributes_type" | "dict_type" if isinstance(error.get("input"), bytes):
            return "the body was not read as JSON; send `Content-Type: application/json`"
        case _:
            return str(error["msg"])
