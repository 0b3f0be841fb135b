"""Following a job over server-sent events, whatever happens to the connection."""

import time
from typing import Any

import pytest

from tandem import ServiceUnreachable, Tandem, UnknownJob, WaitTimeout
from tandem.client import event_stream, transport
from tandem.client.event_stream import EventParser
from tandem.job import JobEvent
from tests.unit.client.stand_in_server import Answer, StandInServer

RUNNING = ("1-0", "state", {"state": "running", "attempt": 1})
PROGRESS = ("2-0", "progress", {"done": 1})
ENDED = ("3-0", "state", {"state": "succeeded"})


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_PAUSE_SECONDS", 0.001)


def test_a_lost_connection_is_taken_up_after_the_last_event(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer.events([RUNNING, PROGRESS], cut=True), Answer.events([ENDED])]
    assert [event.id for event in client.events("job_1")] == ["1-0", "2-0", "3-0"]
    first, second = server.asked
    assert "Last-Event-ID" not in first.headers
    assert second.headers["Last-Event-ID"] == "2-0"


def test_a_stream_that_ends_before_the_job_is_taken_up_too(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer.events([RUNNING]), Answer.events([PROGRESS]), Answer.events([ENDED])]
    assert [event.id for event in client.events("job_1")] == ["1-0", "2-0", "3-0"]


def test_an_error_event_of_a_lost_queue_is_waited_out(client: Tandem, server: StandInServer) -> None:
    lost: dict[str, Any] = {"error": {"code": "queue_unavailable", "message": "gone"}}
    server.answers = [Answer.events([RUNNING, ("1-0", "error", lost)]), Answer.events([PROGRESS, ENDED])]
    assert [event.id for event in client.events("job_1")] == ["1-0", "2-0", "3-0"]


def test_reading_can_begin_after_an_event_and_nothing_may_follow(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer(204)]
    assert list(client.events("job_1", after="3-0")) == []
    assert server.asked[0].headers["Last-Event-ID"] == "3-0"


def test_a_service_that_stays_away_is_given_up(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer(cut=True)]
    with pytest.raises(ServiceUnreachable):
        list(client.events("job_1"))
    assert len(server.asked) == 1 + event_stream.RECONNECTS


def test_an_unknown_job_is_said_at_once(client: Tandem, server: StandInServer) -> None:
    server.answers = [Answer.error("job_not_found", 404)]
    with pytest.raises(UnknownJob):
        list(client.events("job_1"))
    assert len(server.asked) == 1


def test_waiting_ends_at_its_deadline_though_the_stream_is_alive(client: Tandem, server: StandInServer) -> None:
    """Comments keep the connection from being silent; the deadline is the caller's all the same."""

    def comment(_: object) -> Answer:
        time.sleep(0.05)
        return Answer(200, b": ping\n\n", {"Content-Type": "text/event-stream"})

    server.answers = [comment]
    with pytest.raises(WaitTimeout, match="job_1 did not end"):
        client.wait("job_1", timeout=0.4)


def test_the_parser_does_not_care_where_the_bytes_are_cut() -> None:
    """Not in the middle of a character, a line, or an event; and U+2028 is no line end."""
    text = (
        'id: 1-0\r\nevent: tokens\r\ndata: {"text": "ä\u2028b"}\r\n\r\n: ping\n\nid: 2-0\nevent: cancel\ndata: {}\n\n'
    )
    expected = [JobEvent("1-0", "tokens", {"text": "ä\u2028b"}), JobEvent("2-0", "cancel", {})]
    raw = text.encode()
    for size in range(1, len(raw) + 1):
        parser = EventParser()
        pieces = (raw[start : start + size] for start in range(0, len(raw), size))
        assert [event for piece in pieces for event in parser.feed(piece)] == expected
