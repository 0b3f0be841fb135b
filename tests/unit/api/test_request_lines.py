"""The lines of a batch's file, and what is wrong with them."""

import json
from typing import Any

import pytest

from api.batches import request_lines
from api.batches.request_lines import RequestLine, read_requests
from tandem.batch import BatchError

CHAT = "/v1/chat/completions"


def line(**changes: Any) -> bytes:
    whole = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "m"}}
    return json.dumps({name: value for name, value in (whole | changes).items() if value is not None}).encode()


def read(*lines_: bytes) -> list[RequestLine | BatchError]:
    return list(read_requests([b"\n".join(lines_)], CHAT))


def test_rows_are_numbered_by_their_lines() -> None:
    assert read(line(), b"", line(custom_id="b")) == [
        RequestLine(1, "a", {"model": "m"}),
        RequestLine(3, "b", {"model": "m"}),
    ]


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b'{"custom_id": NaN}', "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b"[" * 10_000, "invalid_json_line", None),
        (b"[]", "invalid_request", None),
        (line(custom_id=""), "invalid_custom_id", "custom_id"),
        (line(custom_id=7), "invalid_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "invalid_url", "url"),
        (line(body=[]), "invalid_request", "body"),
        (line(priority="high"), "invalid_request", "priority"),
    ],
)
def test_a_fault_names_its_line_and_field(text: bytes, code: str, param: str | None) -> None:
    fine, fault = read(line(custom_id="z"), text)
    assert isinstance(fine, RequestLine)
    assert isinstance(fault, BatchError)
    assert (fault.line, fault.code, fault.param) == (2, code, param)


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
def test_every_field_is_needed(name: str) -> None:
    (fault,) = read(line(**{name: None}))
    assert isinstance(fault, BatchError)
    assert (fault.param, fault.message) == (name, f"`{name}`: is missing")


def test_a_name_is_used_once() -> None:
    first, second, third = read(line(), line(custom_id="b"), line())
    assert isinstance(first, RequestLine)
    assert isinstance(second, RequestLine)
    assert isinstance(third, BatchError)
    assert (third.code, third.line) == ("duplicate_custom_id", 3)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_a_fault(content: bytes) -> None:
    (fault,) = read_requests([content], CHAT)
    assert isinstance(fault, BatchError)
    assert (fault.code, fault.line) == ("empty_file", None)


def test_too_many_rows_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_lines, "MAX_ROWS", 2)
    *rows, fault = read(*(line(custom_id=str(number)) for number in range(5)))
    assert len(rows) == 2
    assert isinstance(fault, BatchError)
    assert (fault.code, fault.line) == ("too_many_requests", 3)


def test_a_line_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_lines, "MAX_LINE_BYTES", 100)
    long, short = read(line(custom_id="x" * 200), line())
    assert isinstance(long, BatchError)
    assert (long.code, long.line) == ("line_too_long", 1)
    assert isinstance(short, RequestLine)
