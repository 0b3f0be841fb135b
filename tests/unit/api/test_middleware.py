"""The outer layers alone, around applications of the test's own."""

import asyncio
import logging
import resource
from collections.abc import Iterable

import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.body_limit import BodyLimit
from api.open_requests import OpenRequests, most_open_requests, raise_file_limit
from api.request_id import RequestId
from tandem.settings import ApiSettings

SCOPE: Scope = {"type": "http", "method": "POST", "path": "/v1/jobs", "headers": []}


def call(app: ASGIApp, body: Iterable[Message] = ()) -> list[Message]:
    """What an application sends for one request."""
    sent: list[Message] = []
    pieces = iter(body)

    async def receive() -> Message:
        return next(pieces)

    async def send(message: Message) -> None:
        sent.append(message)

    async def request() -> None:
        await app(dict(SCOPE), receive, send)

    asyncio.run(request())
    return sent


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the password is 1234")


async def broken_late(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("too late")


def test_no_more_requests_are_open_than_there_can_be() -> None:
    """One more is told to come back; whoever asks whether the service lives is answered all the same."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def patient(scope: Scope, receive: Receive, send: Send) -> None:
        inside.set()
        await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    app = OpenRequests(patient, most=1)

    async def status(path: str) -> tuple[int, dict[bytes, bytes]]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        await app({**SCOPE, "path": path}, no_more, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    async def no_more() -> Message:
        return {"type": "http.disconnect"}

    async def requests() -> None:
        first = asyncio.create_task(status("/v1/jobs"))
        await inside.wait()
        refused, headers = await status("/v1/jobs")
        assert (refused, headers[b"retry-after"]) == (503, b"1")
        health = asyncio.create_task(status("/healthz"))
        go_on.set()
        assert [(await first)[0], (await health)[0], (await status("/v1/jobs"))[0]] == [200, 200, 200]

    asyncio.run(requests())


def test_a_process_takes_as_many_files_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 5000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, asked: limits.append(asked))
    few = most_open_requests()
    raise_file_limit()
    assert (few, most_open_requests()) == (412, 2400)


def test_what_nobody_foresaw_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        start, answer = call(RequestId(broken))
    request_id = dict(start["headers"])[b"x-request-id"].decode()
    assert start["status"] == 500
    assert request_id in answer["body"].decode()
    assert "1234" not in answer["body"].decode()
    assert request_id in caplog.text
    assert "1234" in caplog.text


def test_an_answer_that_has_begun_is_broken_off() -> None:
    """Its status is sent already; a clean end would make a part look like the whole."""
    with pytest.raises(RuntimeError, match="too late"):
        call(RequestId(broken_late))


def test_a_body_is_counted_over_its_pieces() -> None:
    """The piece that passes the limit never reaches the application, and no later one is asked for by it."""
    read: list[bytes] = []

    async def reader(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            read.append(message["body"])

    pieces = iter([{"type": "http.request", "body": b"x" * 600, "more_body": more} for more in (True, True, False)])
    settings = ApiSettings(api_key=SecretStr("key"), body_bytes=1024)
    with pytest.raises(Exception, match="limit of 1024 bytes") as caught:
        call(BodyLimit(reader, settings), pieces)
    assert getattr(caught.value, "status_code") == 413  # noqa: B009  # the framework's own class
    assert read == [b"x" * 600]
    assert next(pieces, None) is None


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read() -> None:
    """Then the rest is taken and dropped: a client that is cut off while it sends does not read the answer."""
    order: list[str] = []
    pieces = iter([{"type": "http.request", "body": b"x" * 600, "more_body": more} for more in (True, False)])

    async def receive() -> Message:
        order.append("receive")
        return next(pieces)

    async def send(message: Message) -> None:
        order.append(message["type"] if message.get("more_body", True) else "end")

    async def request() -> None:
        scope = {**SCOPE, "headers": [(b"content-length", b"1200")]}
        await BodyLimit(broken, ApiSettings(api_key=SecretStr("key"), body_bytes=1024))(scope, receive, send)

    asyncio.run(request())
    assert order == ["http.response.start", "http.response.body", "receive", "receive", "end"]
