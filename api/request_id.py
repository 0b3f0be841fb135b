"""Every answer carries `x-request-id`; what nobody expected ends here, in the log under that id."""

import logging
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from tandem.errors import TandemError

logger = logging.getLogger("tandem.api")


class RequestId:
    """Outside of all that may fail."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s (%s %s) failed", request_id, scope["method"], scope["path"])
            if started:
                # The status is sent: only a broken connection can still tell the client.
                raise
            error = TandemError(f"something failed inside Tandem; its log says what, under request {request_id}")
            await error_response(error)(scope, receive, send_with_id)
