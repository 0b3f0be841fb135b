"""No body is read into memory, or on to the disk, beyond its limit."""

import asyncio
import re

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from tandem.errors import PayloadTooLarge
from tandem.settings import ApiSettings

FILES_PATH = "/v1/files"
HF_PATH = "/hf/models/"
PARTS_PATH = re.compile(r"/v1/uploads/[^/]+/parts")
MULTIPART_BYTES = 64 * 1024
"""What boundaries, part headers and the other fields of an upload may add to its file."""
DISCARD_BYTES = 256 * 2**20
"""How much of a refused body is still taken, and thrown away: a client that is cut off while it sends sees a broken
connection instead of the answer."""
DISCARD_SECONDS = 10.0


class BodyLimit:
    """Refuses a body by its Content-Length before any of it is read, and one without by counting it.

    JSON may have `body_bytes`, an uploaded file `file_bytes`, a part of one `part_bytes`, a body that is an image or
    a sound `media_bytes`.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit, reason = self._limit(scope["path"])
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            await refuse(error_response(PayloadTooLarge(reason)), scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > limit:
                    if message.get("more_body", False):
                        await _discard(receive)
                    # The framework's own class: it alone passes through its reading of the body.
                    raise HTTPException(PayloadTooLarge.status, reason)
            return message

        await self._app(scope, counted, send)

    def _limit(self, path: str) -> tuple[int, str]:
        if path == FILES_PATH:
            limit = self._settings.file_bytes
            return limit + MULTIPART_BYTES, f"`file` is larger than the limit of {limit} bytes; split it"
        if PARTS_PATH.fullmatch(path):
            limit = self._settings.part_bytes
            return limit + MULTIPART_BYTES, f"`data` is larger than the limit of {limit} bytes; send smaller parts"
        if path.startswith(HF_PATH):
            limit = self._settings.media_bytes
            return limit, f"the body is larger than the limit of {limit} bytes; upload it and name the file's id"
        limit = self._settings.body_bytes
        return limit, f"the body is larger than the limit of {limit} bytes; send it as several requests"


async def refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer before the body has come, then take what still comes, so that the client gets to read the answer."""

    async def send_before_the_body(message: Message) -> None:
        if message["type"] == "http.response.body":
            await send({**message, "more_body": True})
            await _discard(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await send(message)

    await response(scope, receive, send_before_the_body)


async def _discard(receive: Receive) -> None:
    """Take and drop the rest of a body, within bounds."""
    dropped = 0
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            while dropped <= DISCARD_BYTES:
                message = await receive()
                dropped += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        # The client sends too slowly to be waited for; it has had its answer, or has one coming.
        return
