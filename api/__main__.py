"""`python -m api`: serves the API as TANDEM_* variables say, until SIGTERM or Ctrl-C."""

import gc
import signal
import socket
import sys
from types import FrameType

import uvicorn

from api.app import create_app
from api.open_requests import raise_file_limit
from tandem.errors import ConfigurationError
from tandem.settings import ApiSettings

CONFIGURATION_EXIT = 2
BACKLOG = 2048
"""Connections that wait to be accepted (uvicorn's default)."""
GRACE_SECONDS = 10
"""How long running requests may still take after SIGTERM; event streams are ended at once."""
GARBAGE = (5_000, 10, 20)
"""New objects, and collections of the generation below, that start a collection of garbage. An open stream holds some
500 objects: by Python's own numbers (700, 10, 10) those of 1,000 streams were looked through every two seconds, for
0.4 s each time, in which nobody was answered. Now that follows a million new ones."""


def main() -> int:
    """The process's exit status: 0 after a stop by signal, 2 if a setting or the port cannot be used."""
    try:
        settings = ApiSettings.read()
        raise_file_limit()
        app = create_app(settings)
        listener = listen(settings.host, settings.port)
    except ConfigurationError as error:
        print(f"error: {error.message}", file=sys.stderr)  # noqa: T201  # the command's answer
        return CONFIGURATION_EXIT
    # What the start has made stays: no collection need look at it.
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    signal.signal(signal.SIGTERM, _exit)
    config = uvicorn.Config(app, timeout_graceful_shutdown=GRACE_SECONDS, server_header=False)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        # uvicorn has shut down and passes Ctrl-C on.
        return 0
    return 0


def listen(host: str, port: int) -> socket.socket:
    """The server's socket. Raises ConfigurationError that says how to choose another address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"port {port} on {host} cannot be used ({error.strerror or error}); "
            "choose another with `tandem up --port`, or TANDEM_PORT and TANDEM_HOST",
            param="TANDEM_PORT",
        ) from error
    # Its connections have it too. asyncio sets it only on sockets that it has made itself; without it the second of
    # two pieces, such as a body after its headers, waits until the client has acknowledged the first: 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _exit(_: int, __: FrameType | None) -> None:
    """What SIGTERM does when uvicorn passes it on: it has shut down by then."""
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
