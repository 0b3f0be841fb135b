"""What every answer says besides its body: how long it took, and what its key may still queue."""

import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.rate_limit import HEADERS, STATE

PROCESSING = "openai-processing-ms"
EXPOSED = (
    "x-request-id",
    PROCESSING,
    *HEADERS,
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-tandem-job",
    "location",
    "etag",
    "accept-ranges",
    "content-range",
    "content-disposition",
)
"""Headers that a web page of another origin may read, where it may call this API at all."""


class AnswerHeaders:
    """Outside of whatever answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        # The same dict as the route's `request.state`.
        state = scope.setdefault("state", {})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # Until the answer begins: of a stream that is its first byte.
                headers[PROCESSING] = str(round((time.monotonic() - begun) * 1000))
                if (limit := state.get(STATE)) is not None:
                    headers.update(limit.headers())
            await send(message)

        await self._app(scope, receive, send_with_headers)
