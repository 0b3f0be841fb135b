"""The one table from errors to answers, and pydantic's errors in our words."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from api.errors import error_of, error_response, field_path, invalid_request
from tandem import errors
from tandem.job import Failure
from tandem.specs import job_spec_adapter

CHAT: dict[str, Any] = {"kind": "inference", "task": "text-generation", "model": "m", "inputs": "Hello"}


@pytest.mark.parametrize(
    ("error", "status", "kind", "headers"),
    [
        (errors.InvalidRequest("no"), 400, "invalid_request_error", {"x-should-retry": "false"}),
        (errors.AuthenticationFailed(), 401, "authentication_error", {"www-authenticate": "Bearer"}),
        (errors.UnknownJob(), 404, "invalid_request_error", {"x-should-retry": "false"}),
        (errors.ResultNotReady(), 409, "invalid_request_error", {"x-should-retry": "false"}),
        (errors.Cancelled(), 409, "invalid_request_error", {"x-should-retry": "false"}),
        (errors.PayloadTooLarge(), 413, "invalid_request_error", {"x-should-retry": "false"}),
        (errors.QueueFull(), 429, "rate_limit_error", {"x-should-retry": None, "retry-after": "1"}),
        (errors.QueueFull(retry_after=0.1), 429, "rate_limit_error", {"retry-after": "1"}),
        (errors.QueueFull(retry_after=2.1), 429, "rate_limit_error", {"retry-after": "3"}),
        (errors.TandemError(), 500, "server_error", {"x-should-retry": "false"}),
        (errors.WorkerLost(), 500, "server_error", {"x-should-retry": None, "retry-after": None}),
        (errors.QueueUnavailable(), 503, "server_error", {"x-should-retry": None, "retry-after": "1"}),
        (errors.WaitTimeout(), 504, "server_error", {"x-should-retry": "false", "retry-after": None}),
    ],
)
def test_an_error_has_its_status_type_and_headers(
    error: errors.TandemError, status: int, kind: str, headers: dict[str, str | None]
) -> None:
    response = error_response(error)
    body = json.loads(bytes(response.body))
    assert response.status_code == status
    assert body == {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
    assert {name: response.headers.get(name) for name in headers} == headers


def test_a_failure_becomes_the_error_that_it_was() -> None:
    error = error_of(Failure.of(errors.PromptTooLong("too long", param="inputs")))
    assert type(error) is errors.PromptTooLong
    assert (error.message, error.param) == ("too long", "inputs")


def test_a_failure_of_no_known_code_is_an_internal_error() -> None:
    assert type(error_of(Failure(type="KeyError", code="from_the_future", message="x"))) is errors.TandemError


@pytest.mark.parametrize(
    ("location", "path"),
    [
        (("body", "inference", "text-generation", "inputs", "constrained-str"), "inputs"),
        (("body", "inference", "text-generation", "inputs", "tuple[ChatMessage, ...]", 3, "role"), "inputs.3.role"),
        (("header", "Idempotency-Key"), "Idempotency-Key"),
        (("query", "limit"), "limit"),
        (("body",), ""),
        ((), ""),
    ],
)
def test_a_path_names_the_users_fields_alone(location: tuple[str | int, ...], path: str) -> None:
    assert field_path(location) == path


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"task": "sing"}, errors.UnsupportedTask, "`task`: it is 'sing'; it must be one of 'text-generation'"),
        ({"kind": "sing"}, errors.InvalidRequest, "`kind`: it is 'sing'; it must be one of 'inference', 'finetune'"),
        ({"kind": None}, errors.InvalidRequest, "`kind`: it is 'None'; it must be one of 'inference', 'finetune'"),
        ({"model": "a b"}, errors.InvalidRequest, "`model`: String should match pattern"),
        ({"extra": 1}, errors.InvalidRequest, "`extra`: unsupported parameter; leave it out"),
        (
            {"inputs": "", "stream": "maybe"},
            errors.InvalidRequest,
            "`inputs`: String should have at least 1 character (and 1 more fields)",
        ),
        ({"inputs": None}, errors.InvalidRequest, "`inputs`: Input should be a valid string"),
    ],
)
def test_a_bad_spec_is_told_in_one_sentence(
    changes: dict[str, Any], kind: type[errors.TandemError], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        job_spec_adapter.validate_python(CHAT | changes)
    error = invalid_request(caught.value.errors())
    assert type(error) is kind
    assert error.message.startswith(message)


def test_a_missing_kind_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        job_spec_adapter.validate_python({"task": "fill-mask"})
    error = invalid_request(caught.value.errors())
    assert (error.param, error.message) == ("kind", "`kind`: is missing; it says which kind this is")
