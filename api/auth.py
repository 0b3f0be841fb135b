"""The bearer key, checked before anything of a request's body is read."""

from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.body_limit import refuse
from api.errors import ErrorBody, error_body, error_response
from tandem.api_keys import ApiKey, ApiKeys
from tandem.errors import AuthenticationFailed, Forbidden

PROTECTED = ("/v1", "/hf", "/metrics")

bearer = HTTPBearer(auto_error=False, description="The API key; `tandem up` prints it.")
"""Only describes the key in the OpenAPI document: RequireKey checks it."""


class RequireKey:
    """Refuses every request under PROTECTED that does not show a key; the others know whose theirs is.

    `request.state` gets the `key`, and its `owner` by name.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_protected(scope["path"]):
            key = self._shown(Headers(scope=scope))
            if key is None:
                await refuse(error_response(AuthenticationFailed()), scope, receive, send)
                return
            scope.setdefault("state", {}).update(key=key, owner=key.owner)
        await self._app(scope, receive, send)

    @staticmethod
    def _is_protected(path: str) -> bool:
        return any(path == prefix or path.startswith(f"{prefix}/") for prefix in PROTECTED)

    def _shown(self, headers: Headers) -> ApiKey | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return self._keys.identify(key.strip()) if scheme.lower() == "bearer" else None


async def _owner(request: Request) -> str:
    owner: str = request.state.owner
    return owner


Owner = Annotated[str, Depends(_owner)]
"""Who sent the request."""


async def _key(request: Request) -> ApiKey:
    key: ApiKey = request.state.key
    return key


Key = Annotated[ApiKey, Depends(_key)]
"""The key that the request was sent with: its owner, share and limit."""


async def _reach(key: Key) -> str | None:
    return key.reach


Reach = Annotated[str | None, Depends(_reach)]
"""Whose things there are to the request: one owner's, or everybody's (None). Every look into a store is given it."""


async def _check_operator(key: Key) -> None:
    if not key.operator:
        raise Forbidden()


OPERATORS_ONLY = Depends(_check_operator)
"""Of routes that concern all owners together."""
FORBIDDEN: dict[int | str, dict[str, Any]] = {
    Forbidden.status: {
        "model": ErrorBody,
        "description": "It needs an operator's key",
        "content": {"application/json": {"example": error_body(Forbidden()).model_dump()}},
    }
}
"""What they answer to the others, for the OpenAPI document."""
