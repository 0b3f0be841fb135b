"""The lines of a batch's file: each is one request, or a fault that fails the whole file."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_core import from_json

from api.errors import invalid_request
from tandem.batch import BatchError
from tandem.errors import TandemError
from tandem.shard_rows import lines
from tandem.specs import Spec
from tandem.specs.batch import MAX_ROWS, BatchEndpoint

MAX_LINE_BYTES = 8 * 2**20
"""One request: as large as the endpoint itself takes by default."""
MAX_CUSTOM_ID_CHARACTERS = 512
"""Room for a path or a URL, which people use as names."""


class _Line(Spec):
    """OpenAI's form of a line."""

    custom_id: Annotated[str, Field(min_length=1, max_length=MAX_CUSTOM_ID_CHARACTERS)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


FAULT_CODES = {"custom_id": "invalid_custom_id", "method": "invalid_method", "url": "invalid_url"}
"""Field of a line → the code of its fault, in OpenAI's words; `invalid_request` for the others."""


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One row of a batch."""

    row: int
    """Its line, counted from 1."""
    custom_id: str
    body: dict[str, Any]


def read_requests(chunks: Iterable[bytes], endpoint: BatchEndpoint) -> Iterator[RequestLine | BatchError]:
    """Every line that is not blank, or its fault. Faults that no line has come last: too many rows, or none."""
    seen: set[bytes] = set()
    rows = 0
    for number, line in enumerate(lines(chunks, MAX_LINE_BYTES), start=1):
        if not line.strip():
            continue
        rows += 1
        if rows > MAX_ROWS:
            yield BatchError(
                code="too_many_requests",
                message=f"the file has more than {MAX_ROWS} requests; cut it into several batches",
                line=number,
            )
            return
        request = _request(number, line, endpoint)
        if isinstance(request, RequestLine):
            # A digest takes less than the word itself, and no two words have the same.
            word = hashlib.sha256(request.custom_id.encode()).digest()
            if word in seen:
                request = BatchError(
                    code="duplicate_custom_id",
                    message=f"`custom_id`: {request.custom_id!r} names an earlier line as well; each must be unique",
                    line=number,
                    param="custom_id",
                )
            seen.add(word)
        yield request
    if not rows:
        yield BatchError(code="empty_file", message="the file has no requests; write one a line, as JSON")


def _request(number: int, line: bytes, endpoint: BatchEndpoint) -> RequestLine | BatchError:
    if len(line) > MAX_LINE_BYTES:
        return BatchError(
            code="line_too_long", message=f"the line has more than {MAX_LINE_BYTES} bytes; shorten it", line=number
        )
    try:
        fields = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        return BatchError(code="invalid_json_line", message=f"the line is not JSON: {error}", line=number)
    try:
        read = _Line.model_validate(fields)
    except ValidationError as error:
        fault = invalid_fields(error)
        code = FAULT_CODES.get(fault.param or "", "invalid_request")
        return BatchError(code=code, message=fault.message, line=number, param=fault.param)
    if read.url != endpoint:
        return BatchError(
            code="invalid_url",
            message=f"`url`: it is {read.url!r}, and the batch's endpoint is {endpoint!r}; all lines must have that",
            line=number,
            param="url",
        )
    return RequestLine(number, read.custom_id, read.body)


def invalid_fields(error: ValidationError) -> TandemError:
    """The error of a line, or of the body in it, in the words of the routes."""
    # As a route's own errors are: the first part says where the fields came from, and is left out.
    return invalid_request([{**each, "loc": ("body", *each["loc"])} for each in error.errors()])
