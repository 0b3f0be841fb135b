"""`GET /v1/jobs/{id}/events`: the event stream and its cursor."""

import math

import httpx
import pytest

from tests.integration.api.api_server import client_of, serving, settings_for
from tests.integration.api.calls import submit
from tests.integration.api.sse import events_of
from tests.integration.api.stand_in_worker import StandInWorker, generated
from tests.valkey_server import ValkeyServer


def test_every_event_comes_in_order_until_the_job_ends(client: httpx.Client, worker: StandInWorker) -> None:
    job_id = submit(client)
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer)
        assert next(events).data["state"] == "queued"
        claim = worker.take()
        assert next(events).data["state"] == "running"
        worker.jobs.report(job_id, claim.fence, [("progress", {"done": 1, "total": 2})])
        progress = next(events)
        assert (progress.type, progress.data) == ("progress", {"done": 1, "total": 2})
        worker.say(claim, "Grüße\n")
        assert next(events).data == {"text": "Grüße\n"}
        worker.succeed(claim, generated("Grüße\n"))
        last = next(events)
        assert (last.type, last.data["state"]) == ("state", "succeeded")
        assert next(events, None) is None


def test_reading_goes_on_after_the_last_event_id(client: httpx.Client, worker: StandInWorker) -> None:
    job_id = submit(client)
    claim = worker.take()
    worker.say(claim, "one", "two", "three")
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        events = events_of(answer)
        seen = [next(events) for _ in range(3)]
    worker.succeed(claim, generated("onetwothree"))
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": seen[-1].id}) as answer:
        rest = list(events_of(answer))
    assert [event.type for event in rest] == ["tokens", "tokens", "state"]
    assert [event.data["text"] for event in rest[:2]] == ["two", "three"]
    assert len({event.id for event in seen + rest}) == 6


def test_nothing_comes_after_the_end(client: httpx.Client) -> None:
    """204 tells a browser's EventSource to stop connecting again."""
    job_id = submit(client)
    client.post(f"/v1/jobs/{job_id}/cancel")
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        last = list(events_of(answer))[-1]
    answer = client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last.id})
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("cursor", ["yesterday", "5-99633815578594033157"])
def test_a_cursor_of_another_form_is_refused(client: httpx.Client, cursor: str) -> None:
    """Symptom: a cursor of 20 digits was a 500. Cause: Redis counts with 64 bits and refused it. Fix: so do we."""
    answer = client.get(f"/v1/jobs/{submit(client)}/events", headers={"Last-Event-ID": cursor})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Last-Event-ID"


def test_a_loss_that_is_no_number_is_null(client: httpx.Client, worker: StandInWorker) -> None:
    """JSON has no NaN: a browser could not read the event."""
    job_id = submit(client)
    claim = worker.take()
    worker.jobs.report(job_id, claim.fence, [("metrics", {"loss": math.nan, "step": 3})])
    worker.succeed(claim, {"loss": math.nan})
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        metrics = next(event for event in events_of(answer) if event.type == "metrics")
    assert metrics.data == {"loss": None, "step": 3}
    assert client.get(f"/v1/jobs/{job_id}/result").json() == {"loss": None}


def test_a_silent_stream_has_heartbeats(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments keep proxies from closing the connection; event readers skip them."""
    monkeypatch.setattr("api.routes.jobs.HEARTBEAT_SECONDS", 0.05)
    with client.stream("GET", f"/v1/jobs/{submit(client)}/events") as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith(":")).startswith(": ping")


def test_leaving_the_event_stream_does_not_cancel_the_job(client: httpx.Client, worker: StandInWorker) -> None:
    job_id = submit(client)
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        next(events_of(answer))
    worker.succeed(worker.take(), generated("done"))
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded"


def test_a_stream_whose_server_dies_ends_in_an_error_event_and_can_be_resumed(
    own_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = settings_for(own_valkey.url, tmp_path_factory.mktemp("artifacts"))
    with serving(settings) as url, client_of(url) as client:
        job_id = submit(client)
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            events = events_of(answer)
            queued = next(events)
            own_valkey.sync()
            own_valkey.kill()
            broken = next(events)
            assert (broken.type, broken.data["error"]["code"]) == ("error", "queue_unavailable")
            assert broken.id == ""
            assert next(events, None) is None
        own_valkey.restart()
        client.post(f"/v1/jobs/{job_id}/cancel")
        with client.stream("GET", f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": queued.id}) as answer:
            assert [event.data["state"] for event in events_of(answer)] == ["cancelled"]
