"""The bearer key, checked before anything of a request's body is read."""

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.body_limit import refuse
from api.errors import error_response
from tandem.errors import AuthenticationFailed
from tandem.settings import ApiSettings

PROTECTED = "/v1"
OWNER = "default"
"""Whose jobs, files and adapters these are: one key, so one owner, for now."""

bearer = HTTPBearer(auto_error=False, description="The API key; `tandem up` prints it.")
"""Only describes the key in the OpenAPI document: RequireKey checks it."""


class RequireKey:
    """Refuses every request under /v1 that does not show the key."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._key = settings.api_key.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_protected(scope["path"]):
            if not self._shows_key(Headers(scope=scope)):
                await refuse(error_response(AuthenticationFailed()), scope, receive, send)
                return
            scope.setdefault("state", {})["owner"] = OWNER
        await self._app(scope, receive, send)

    @staticmethod
    def _is_protected(path: str) -> bool:
        return path == PROTECTED or path.startswith(f"{PROTECTED}/")

    def _shows_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Compared in constant time, so that the answer's delay tells nothing about the key.
        return scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key)


def _owner(request: Request) -> str:
    owner: str = request.state.owner
    return owner


Owner = Annotated[str, Depends(_owner)]
"""Who sent the request."""
