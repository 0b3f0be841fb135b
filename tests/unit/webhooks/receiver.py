"""A user's receiver: a real HTTP or HTTPS server on loopback that notes what it is sent and answers as told."""

import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Told:
    """One request."""

    path: str
    headers: Mapping[str, str]
    body: str

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]


Answering = Callable[[BaseHTTPRequestHandler], None]


def status(code: int, **headers: str) -> Answering:
    """Answer with a status; `Retry_After="3"` becomes a header."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@dataclass
class Receiver:
    port: int
    host: str = "127.0.0.1"
    told: list[Told] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    """The server names that TLS clients asked for."""
    answering: Answering = field(default_factory=lambda: status(200))
    released: threading.Event = field(default_factory=threading.Event)
    """Set when the test is over: hanging answers end then."""

    def hang(self, handler: BaseHTTPRequestHandler) -> None:
        """Never answer (an Answering)."""
        self.released.wait()
        handler.close_connection = True


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that leave early, or refuse the certificate, are what some tests are about.
        if not isinstance(sys.exception(), (ConnectionError, ssl.SSLError)):
            super().handle_error(request, client_address)


@contextmanager
def serving(tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[Receiver]:
    """Serve until the block ends, with TLS if a context with a certificate is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            receiver.told.append(Told(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            receiver.answering(self)

        def log_message(self, *_: object) -> None:
            """Say nothing: a test's output is its own."""

    server = _Server((host, port), Handler)
    receiver = Receiver(server.server_port, host)
    if tls is not None:

        def note(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
            receiver.names.append(name)

        tls.sni_callback = note
        # The handshake is left to the thread of the connection, so that a bad one does not stop the server.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port() -> int:
    """A loopback port at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
