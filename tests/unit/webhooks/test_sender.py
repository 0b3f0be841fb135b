"""One try of a delivery, against real receivers."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import trustme
from standardwebhooks import Webhook

from tandem.webhooks import sender as sender_module
from tandem.webhooks.addresses import AddressRules
from tandem.webhooks.outbox import Message
from tandem.webhooks.resolver import SystemResolver
from tandem.webhooks.sender import ANSWER_BYTES, Answer, Sender
from tandem.webhooks.signature import Signer
from tests.unit.webhooks.conftest import NAME, tls_of
from tests.unit.webhooks.names import Names
from tests.unit.webhooks.receiver import Receiver, closed_port, serving, status

RELAXED, STRICT = AddressRules(allow_private=True), AddressRules(allow_private=False)
BODY = json.dumps({"type": "job.succeeded"})
LOOPBACK = ["127.0.0.1"]


def send(
    signer: Signer,
    url: str,
    *,
    rules: AddressRules = RELAXED,
    names: Names | None = None,
    trust: ssl.SSLContext | None = None,
) -> Answer:
    sender = Sender(rules, resolver=names or Names(LOOPBACK), trust=trust)
    return asyncio.run(sender.send(Message("msg_job_1", url, BODY, signer)))


# What arrives


def test_a_message_arrives_signed_and_whole(signer: Signer, receiver: Receiver, secret: str) -> None:
    answer = send(signer, f"http://{NAME}:{receiver.port}/hook?token=x")
    assert answer == Answer(200, "200")
    assert answer.is_delivered
    (told,) = receiver.told
    assert told.path == "/hook?token=x"
    assert told.headers["host"] == f"{NAME}:{receiver.port}"
    assert told.headers["content-type"] == "application/json"
    assert told.message_id == "msg_job_1"
    assert Webhook(secret).verify(told.body, dict(told.headers)) == {"type": "job.succeeded"}


def test_the_operating_system_looks_names_up(signer: Signer, receiver: Receiver) -> None:
    sender = Sender(RELAXED, resolver=SystemResolver())
    message = Message("msg_job_1", f"http://localhost:{receiver.port}/", BODY, signer)
    try:
        answer = asyncio.run(sender.send(message))
    finally:
        sender.close()
    assert answer.is_delivered, answer


@pytest.mark.parametrize(("code", "delivered"), [(200, True), (204, True), (299, True), (400, False), (500, False)])
def test_only_a_status_from_200_to_299_is_a_delivery(
    signer: Signer, receiver: Receiver, code: int, delivered: bool
) -> None:
    receiver.answering = status(code)
    assert send(signer, f"http://{NAME}:{receiver.port}/").is_delivered is delivered


def test_gone_is_told_apart(signer: Signer, receiver: Receiver) -> None:
    receiver.answering = status(410)
    assert send(signer, f"http://{NAME}:{receiver.port}/").is_gone


def test_the_pause_that_a_receiver_asks_for_comes_along(signer: Signer, receiver: Receiver) -> None:
    receiver.answering = status(429, Retry_After="120")
    assert send(signer, f"http://{NAME}:{receiver.port}/") == Answer(429, "429", retry_after=120.0)


# Where it goes


def test_a_name_is_looked_up_once_and_that_address_is_connected_to(
    signer: Signer, authority: trustme.CA, trust: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: a second look-up would answer another address, at which another receiver listens."""

    def no_second_look_up(host: Any, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{host} was looked up again")

    with (
        serving(tls_of(authority, NAME), host="127.0.0.2") as meant,
        serving(tls_of(authority, NAME), host="127.0.0.3", port=meant.port) as other,
    ):
        names = Names([meant.host], [other.host])
        monkeypatch.setattr(socket, "getaddrinfo", no_second_look_up)
        assert send(signer, f"https://{NAME}:{meant.port}/", names=names, trust=trust).is_delivered
        assert (len(meant.told), len(other.told)) == (1, 0)
        assert names.asked == [(NAME, meant.port)]


@pytest.mark.parametrize("addresses", [LOOPBACK, ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["169.254.169.254"]])
def test_a_name_that_leads_inside_is_not_connected_to(
    signer: Signer, secure_receiver: Receiver, trust: ssl.SSLContext, addresses: Sequence[str]
) -> None:
    url = f"https://{NAME}:{secure_receiver.port}/"
    answer = send(signer, url, rules=STRICT, names=Names(addresses), trust=trust)
    assert answer.status is None
    assert "webhooks may not go to" in answer.reason
    assert secure_receiver.names == []
    assert secure_receiver.told == []


def test_a_url_that_is_no_longer_allowed_is_not_looked_up(signer: Signer) -> None:
    """The operator's rules may have changed since the submission."""
    names = Names(LOOPBACK)
    assert "must begin with https://" in send(signer, "http://receiver.example/", rules=STRICT, names=names).reason
    assert names.asked == []


def test_a_redirect_is_a_failed_try_and_not_followed(signer: Signer, receiver: Receiver) -> None:
    with serving() as elsewhere:
        receiver.answering = status(307, Location=f"http://127.0.0.1:{elsewhere.port}/")
        answer = send(signer, f"http://{NAME}:{receiver.port}/")
        assert (answer.status, answer.is_delivered) == (307, False)
        assert elsewhere.told == []


def test_proxies_of_the_environment_are_not_used(
    signer: Signer, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert send(signer, f"http://{NAME}:{receiver.port}/").is_delivered
        assert proxy.told == []


def test_the_next_address_is_tried_if_one_cannot_be_connected_to(signer: Signer, receiver: Receiver) -> None:
    names = Names(["127.0.0.9", receiver.host])
    assert send(signer, f"http://{NAME}:{receiver.port}/", names=names).is_delivered
    assert len(receiver.told) == 1


# Who answers


def test_the_certificate_is_that_of_the_name_and_not_of_the_address(
    signer: Signer, secure_receiver: Receiver, trust: ssl.SSLContext
) -> None:
    assert send(signer, f"https://{NAME}:{secure_receiver.port}/", trust=trust).is_delivered
    assert secure_receiver.names == [NAME]


def test_an_address_as_host_needs_a_certificate_for_the_address(
    signer: Signer, authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    with serving(tls_of(authority, "127.0.0.1")) as receiver:
        assert send(signer, f"https://127.0.0.1:{receiver.port}/", trust=trust).is_delivered


def test_a_certificate_for_another_name_is_refused(
    signer: Signer, secure_receiver: Receiver, trust: ssl.SSLContext
) -> None:
    answer = send(signer, f"https://other.example:{secure_receiver.port}/", trust=trust)
    assert answer.status is None
    assert "certificate verify failed" in answer.reason
    assert secure_receiver.told == []


def test_a_certificate_of_an_unknown_authority_is_refused(signer: Signer, secure_receiver: Receiver) -> None:
    answer = send(signer, f"https://{NAME}:{secure_receiver.port}/")
    assert answer.status is None
    assert "certificate verify failed" in answer.reason
    assert secure_receiver.told == []


# What goes wrong


def test_nobody_there(signer: Signer) -> None:
    answer = send(signer, f"http://{NAME}:{closed_port()}/")
    assert answer.status is None
    assert answer.reason.startswith("ConnectError")


def test_a_name_that_does_not_exist(signer: Signer) -> None:
    class NoNames(Names):
        async def addresses(self, host: str, port: int) -> list[str]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert send(signer, "https://nowhere.example/", names=NoNames([])).reason.startswith(
        "the host cannot be looked up"
    )


def test_a_receiver_that_never_answers_is_left_in_time(
    signer: Signer, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "STATUS_SECONDS", 0.2)
    receiver.answering = receiver.hang
    assert send(signer, f"http://{NAME}:{receiver.port}/") == Answer(None, "no answer within 0.2 s")


def test_a_receiver_that_drips_its_headers_is_left_in_time(
    signer: Signer, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes before the read times out: the limit is on the whole."""

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not receiver.released.wait(0.05):
            handler.wfile.write(b"x: y\r\n")

    monkeypatch.setattr(sender_module, "STATUS_SECONDS", 0.3)
    receiver.answering = drip
    assert send(signer, f"http://{NAME}:{receiver.port}/").reason == "no answer within 0.3 s"


def test_a_name_server_that_hangs_is_left_in_time(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Names):
        async def addresses(self, host: str, port: int) -> list[str]:
            await asyncio.Event().wait()
            raise AssertionError("nobody sets it")

    monkeypatch.setattr(sender_module, "STATUS_SECONDS", 0.1)
    assert send(signer, "https://slow.example/", names=Hanging([])).reason == "no answer within 0.1 s"


def test_a_status_counts_though_its_body_never_ends(
    signer: Signer, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"half")
        receiver.released.wait()

    monkeypatch.setattr(sender_module, "BODY_SECONDS", 0.1)
    receiver.answering = half
    assert send(signer, f"http://{NAME}:{receiver.port}/").is_delivered


def test_of_a_huge_answer_only_the_beginning_is_read(signer: Signer, receiver: Receiver) -> None:
    written = 0

    def flood(handler: BaseHTTPRequestHandler) -> None:
        nonlocal written
        handler.send_response(200)
        handler.end_headers()
        while not receiver.released.is_set():
            # Raises when the sender has closed the connection.
            written += handler.wfile.write(bytes(ANSWER_BYTES))

    receiver.answering = flood
    began = time.monotonic()
    assert send(signer, f"http://{NAME}:{receiver.port}/").is_delivered
    assert time.monotonic() - began < sender_module.BODY_SECONDS, "the size ended it, not the time"
    # What the sockets of both sides hold comes on top of what was read.
    assert written < 32 * 2**20


def test_something_that_is_not_http(signer: Signer, receiver: Receiver) -> None:
    def greet(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"220 mail.example ESMTP\r\n")

    receiver.answering = greet
    answer = send(signer, f"http://{NAME}:{receiver.port}/")
    assert answer.status is None
    assert answer.reason.startswith("RemoteProtocolError")
