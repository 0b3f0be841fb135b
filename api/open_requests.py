"""How many requests may be open at the same time: more than a process has files for are refused, not left waiting."""

import resource

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import error_response
from tandem.errors import TooManyRequests
from tandem.events import MAX_READERS

OWN_FILES = 200
"""What a process has open besides its streams: its libraries' files, THREADS connections to the queue's server, and
clients that are told that there are too many."""
FILES_OF_A_STREAM = 2
"""Its client's connection, and the one on which its events are waited for."""
NEVER_REFUSED = frozenset({"/healthz", "/readyz", "/metrics"})
"""Whoever watches the service is to see that it lives."""


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows it: shells and containers set 1,024 at first."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def most_open_requests() -> int:
    """As many as this process has files for, or connections to read events with."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_READERS
    return max(1, min(MAX_READERS, (files - OWN_FILES) // FILES_OF_A_STREAM))


class OpenRequests:
    """Refuses a request with 503 while as many as can be are open; a process without a file left would not answer."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in NEVER_REFUSED:
            await self._app(scope, receive, send)
            return
        if self._open >= self._most:
            error = TooManyRequests(
                f"{self._most} requests are open at this API process, as many as it can hold; try again when some "
                "have ended, run more API processes, or raise its limit of open files (`ulimit -n`)"
            )
            await error_response(error)(scope, receive, send)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1
