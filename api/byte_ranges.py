"""A blob as an answer: streamed, whole or the one range that was asked for, and not at all to who has it already."""

import re
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from tandem.errors import InvalidRequest

_ONE_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
"""Of a Range header. One of several ranges, or of another unit, is ignored, as RFC 9110 (14.2) lets a server do."""

RESPONSES: dict[int | str, dict[str, object]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The bytes"},
    206: {"content": {"application/octet-stream": {}}, "description": "The bytes that `Range` asked for"},
    304: {"description": "`If-None-Match` names the content: the client has it"},
}
"""What a route that answers with `blob_response` documents."""


class RangeNotSatisfiable(InvalidRequest):
    """The range begins behind the content's end."""

    code: ClassVar[str] = "range_not_satisfiable"
    status: ClassVar[int] = 416


Chunks = Callable[[int, int], Iterator[bytes]]
"""The bytes from the first number up to but not including the second one, piece by piece."""


def blob_response(request: Request, chunks: Chunks, *, size: int, digest: str, filename: str) -> Response:
    """Answer with a blob of `size` bytes whose SHA-256 is `digest`.

    Raises RangeNotSatisfiable.
    """
    tag = f'"{digest}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}",
        # It is a user's: no browser may take it for a page of this service.
        "X-Content-Type-Options": "nosniff",
    }
    if tag in _tags(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, size, 200
    wanted = request.headers.get("range")
    if wanted is not None and request.headers.get("if-range", tag) == tag:
        start, end, status = _asked_range(wanted, size)
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    return StreamingResponse(chunks(start, end), status, headers, "application/octet-stream")


def _tags(header: str) -> set[str]:
    return {part.strip().removeprefix("W/") for part in header.split(",")}


def _asked_range(header: str, size: int) -> tuple[int, int, Literal[200, 206]]:
    """Where the range begins, where it ends (exclusive), and the status of the answer."""
    match = _ONE_RANGE.fullmatch(header.strip())
    if match is None or match[1] == match[2] == "":
        return 0, size, 200
    first, last = match.groups()
    if first == "":
        # `-5`: the last five.
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), size if last == "" else min(int(last) + 1, size)
        if last != "" and int(last) < start:
            return 0, size, 200
    if start >= size:
        raise RangeNotSatisfiable(f"`Range` {header!r} begins behind the end: there are {size} bytes", param="Range")
    return start, end, 206
