"""What the client does about refusals, lost connections and errors."""

import json
import socket

import pytest

from tandem import (
    AuthenticationFailed,
    DeadlineExceeded,
    NotFound,
    PromptTooLong,
    QueueFull,
    QueueUnavailable,
    ServiceUnreachable,
    Tandem,
    TandemError,
    UnknownModel,
)
from tandem.client import transport
from tandem.client.transport import error_of
from tests.unit.client.stand_in_server import Answer, StandInServer

JOB = {
    "id": "job_1",
    "kind": "inference",
    "task": "text-generation",
    "model": "m",
    "state": "queued",
    "attempt": 0,
    "created_at": 1.0,
}


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_PAUSE_SECONDS", 0.001)


def test_a_refused_request_is_sent_again_after_the_pause_that_the_service_asks_for(
    client: Tandem, server: StandInServer
) -> None:
    server.answers = [Answer.error("queue_unavailable", 503, Retry_After="0"), Answer.json(JOB)]
    assert client.get("job_1").id == "job_1"
    assert len(server.asked) == 2


def test_a_service_that_stays_away_is_asked_a_bounded_number_of_times(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer.error("queue_unavailable", 503, "the queue is gone", Retry_After="0")]
    with pytest.raises(QueueUnavailable, match="the queue is gone"):
        client.get("job_1")
    assert len(server.asked) == 1 + transport.RETRIES


def test_a_pause_longer_than_anyone_waits_is_not_waited_for(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer.error("queue_unavailable", 503, Retry_After="3600")]
    with pytest.raises(QueueUnavailable):
        client.get("job_1")
    assert len(server.asked) == 1


def test_a_submission_whose_answer_is_lost_is_repeated_with_the_same_key(
    client: Tandem, server: StandInServer
) -> None:
    """So the service knows that it is the same job."""
    server.answers = [Answer(cut=True), Answer.json(JOB, 202)]
    client.submit("text-generation", "hello", model="m")
    first, second = server.asked
    assert first.body == second.body
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]


def test_two_submissions_have_two_keys_and_a_key_of_the_caller_is_sent(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer.json(JOB, 202)]
    client.submit("text-generation", "hello", model="m")
    client.submit("text-generation", "hello", model="m")
    client.submit("text-generation", "hello", model="m", idempotency_key="mine")
    keys = [asked.headers["Idempotency-Key"] for asked in server.asked]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


@pytest.mark.parametrize("first", [Answer(cut=True), Answer.error("queue_unavailable", 503, Retry_After="0")])
def test_an_upload_whose_answer_is_lost_or_bad_is_repeated_whole_with_the_same_key(
    client: Tandem, server: StandInServer, first: Answer
) -> None:
    """So the service knows that it is the same file."""
    file = {"id": "file-1", "filename": "rows.jsonl", "purpose": "fine-tune", "bytes": 3, "created_at": 1}
    server.answers = [first, Answer.json(file)]
    client.upload([{"prompt": "a", "completion": "ß"}])
    assert len({asked.headers["Idempotency-Key"] for asked in server.asked}) == 1
    assert all('{"prompt": "a", "completion": "ß"}'.encode() in asked.body for asked in server.asked)
    assert len(server.asked) == 2


def test_a_full_queue_is_waited_for_and_then_says_when_to_come_back(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer.error("queue_full", 429, Retry_After="0"), Answer.json(JOB, 202)]
    client.submit("text-generation", "hello", model="m")
    assert len(server.asked) == 2
    server.answers = [Answer.error("queue_full", 429, Retry_After="90")]
    with pytest.raises(QueueFull) as full:
        client.submit("text-generation", "hello", model="m")
    assert full.value.retry_after == 90.0
    assert len(server.asked) == 3


def test_whoever_is_made_to_wait_is_told_why(
    client: Tandem, server: StandInServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Symptom: `tandem submit` to a full queue said nothing for minutes. Cause: it waited as the service had asked.
    Fix: it says so."""
    monkeypatch.setattr(transport, "NOTICED_SECONDS", 0.01)
    server.answers = [Answer.error("queue_full", 429, "it is full", Retry_After="0.02"), Answer.json(JOB, 202)]
    client.submit("text-generation", "hello", model="m")
    assert "it is full; trying again in" in caplog.text


@pytest.mark.parametrize(("headers", "asked"), [({}, 1 + transport.RETRIES), ({"x_should_retry": "false"}, 1)])
def test_a_504_is_repeated_unless_the_service_itself_has_decided(
    client: Tandem, server: StandInServer, headers: dict[str, str], asked: int
) -> None:
    """A proxy's says that nobody knows; the service's own, that the job has expired: that lasts."""
    server.answers = [Answer.error("deadline_exceeded", 504, **headers)]
    with pytest.raises(DeadlineExceeded):
        client.get("job_1")
    assert len(server.asked) == asked


def test_scheduling_becomes_fields_of_the_job(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer.json(JOB, 202)]
    client.submit(
        "text-generation", "hello", model="m", priority="high", webhook="https://example.com/", metadata={"a": "b"}
    )
    assert json.loads(server.asked[0].body) == {
        "kind": "inference",
        "task": "text-generation",
        "model": "m",
        "inputs": "hello",
        "priority": "high",
        "webhook": {"url": "https://example.com/"},
        "metadata": {"a": "b"},
    }


def test_a_request_that_is_at_fault_is_sent_once(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer.error("model_not_found", 404, "no model 'm'")]
    with pytest.raises(UnknownModel, match="no model 'm'"):
        client.submit("text-generation", "hello", model="m")
    assert len(server.asked) == 1


def test_nobody_listening_is_said_with_the_address_and_the_fix() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with (
        Tandem(f"http://127.0.0.1:{port}", "a-key") as client,
        pytest.raises(ServiceUnreachable, match=rf"127\.0\.0\.1:{port}.*tandem up.*TANDEM_URL"),
    ):
        client.models()


def test_something_else_that_listens_there_is_no_crash(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer(404, b"<html>nginx</html>")]
    with pytest.raises(NotFound, match=r"HTTP 404 from .*nginx"):
        client.models()


def test_the_key_is_sent_as_bearer(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer.json({"data": []})]
    assert client.models() == []
    assert server.asked[0].headers["Authorization"] == "Bearer a-key"


@pytest.mark.parametrize(
    ("payload", "status", "expected"),
    [
        ({"code": "context_length_exceeded", "message": "too long", "param": "inputs"}, 400, PromptTooLong),
        ({"code": "internal_error", "message": "RuntimeError: x"}, None, TandemError),
        ({"code": "of_a_later_version", "message": "new"}, 404, NotFound),
        ({"code": "of_a_later_version", "message": "new"}, 401, AuthenticationFailed),
        ({"code": "of_a_later_version", "message": "new"}, 500, TandemError),
    ],
)
def test_an_error_is_the_class_of_its_code_or_the_nearest_by_status(
    payload: dict[str, str], status: int | None, expected: type[TandemError]
) -> None:
    error = error_of(payload, status=status)
    assert type(error) is expected
    assert payload["message"] in error.message
    assert error.param == payload.get("param")
