"""A small HTTP server that answers what a test tells it to, and remembers what it was asked.

It stands in for the API where a test is about lost connections and refusals, which the real one gives on no command.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Close the connection with less of the body than announced, or, with no body, before any answer."""

    @classmethod
    def json(cls, value: Any, status: int = 200, **headers: str) -> "Answer":
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **named})

    @classmethod
    def error(cls, code: str, status: int, message: str = "as the test says", **headers: str) -> "Answer":
        error = {"message": message, "type": "x", "param": None, "code": code}
        return cls.json({"error": error}, status, **headers)

    @classmethod
    def events(cls, events: Iterable[tuple[str, str, dict[str, Any]]], *, cut: bool = False) -> "Answer":
        text = "".join(f"id: {id_}\nevent: {type_}\ndata: {json.dumps(data)}\n\n" for id_, type_, data in events)
        return cls(200, text.encode(), {"Content-Type": "text/event-stream"}, cut=cut)


class StandInServer:
    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[Asked] = []
        self.answers: list[Answer | Callable[[Asked], Answer]] = []


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that leaves in the midst of an answer is what some tests are about.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def stand_in_server() -> Iterator[StandInServer]:
    """Serves `answers` one after another, the last one for ever."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            asked = Asked(self.command, self.path, dict(self.headers), self.rfile.read(length))
            server.asked.append(asked)
            answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            answer = answer(asked) if callable(answer) else answer
            self.close_connection = answer.cut
            if answer.cut and not answer.body:
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body) + answer.cut))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815  # http.server's names

        def log_message(self, *_: object) -> None:
            """Say nothing: a test's output is its own."""

    http = _Server(("127.0.0.1", 0), Handler)
    server = StandInServer(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
