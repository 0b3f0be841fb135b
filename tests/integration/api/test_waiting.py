"""The synchronous doors while they wait: the client leaves, the time is over, the queue's server goes away."""

import contextlib
import threading
import time
from pathlib import Path

import httpx
import pytest

from tandem.outages import HUNG_SECONDS
from tests.integration.api.api_server import client_of, serving, settings_for
from tests.integration.api.calls import error
from tests.integration.api.sse import events_of
from tests.integration.api.stand_in_worker import CHAT_MODEL, EMBEDDING_MODEL, StandInWorker, generated
from tests.valkey_server import ValkeyServer

CHAT_REQUEST = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "Hello"}]}
EMBEDDING_REQUEST = {"model": EMBEDDING_MODEL, "input": "Hello"}
LEAVE_SECONDS = 0.3
"""After which the client gives up: long after the job is queued."""
NOTICE_SECONDS = 30.0
"""Within which the job must be cancelled."""
AWAY_SECONDS = 6.0
"""Within which the queue's absence is told: 1.5 s, and the rest for a busy machine."""


def wait_until_cancelled(client: httpx.Client) -> None:
    """The only job's state is cancelled, soon."""
    deadline = time.monotonic() + NOTICE_SECONDS
    while (states := [job["state"] for job in client.get("/v1/jobs").json()["data"]]) != ["cancelled"]:
        assert time.monotonic() < deadline, states


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT_REQUEST),
        ("/v1/chat/completions", CHAT_REQUEST | {"stream": True}),
        ("/v1/embeddings", EMBEDDING_REQUEST),
    ],
)
def test_a_client_that_leaves_cancels_its_job(client: httpx.Client, path: str, body: dict[str, object]) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post(path, json=body, timeout=LEAVE_SECONDS)
    wait_until_cancelled(client)


def test_a_client_that_leaves_its_stream_cancels_its_job(client: httpx.Client, worker: StandInWorker) -> None:
    """The running job is asked to stop, so that no more tokens are made for nobody."""
    with contextlib.ExitStack() as opened:
        opened.enter_context(worker.working(lambda worker: worker.say(worker.take(), "Hello")))
        body = CHAT_REQUEST | {"stream": True}
        answer = opened.enter_context(client.stream("POST", "/v1/chat/completions", json=body))
        lines = answer.iter_lines()
        assert "assistant" in next(lines)
        job_id = answer.headers["x-tandem-job"]
    deadline = time.monotonic() + NOTICE_SECONDS
    while not client.get(f"/v1/jobs/{job_id}").json()["cancel_requested"]:
        assert time.monotonic() < deadline, "nobody asked the job to stop"


def test_a_client_with_a_key_may_leave_and_come_back(client: httpx.Client, worker: StandInWorker) -> None:
    headers = {"Idempotency-Key": "question-1"}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=CHAT_REQUEST, headers=headers, timeout=LEAVE_SECONDS)
    with worker.answering(generated("still here")):
        answer = client.post("/v1/chat/completions", json=CHAT_REQUEST, headers=headers)
    assert answer.json()["choices"][0]["message"]["content"] == "still here"
    assert len(client.get("/v1/jobs").json()["data"]) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_wait_over_the_limit_names_the_job_that_goes_on(valkey_url: str, tmp_path: Path, stream: bool) -> None:
    settings = settings_for(valkey_url, tmp_path, wait_seconds=0.3)
    with serving(settings) as url, client_of(url) as client:
        answer = client.post("/v1/chat/completions", json=CHAT_REQUEST | {"stream": stream})
        assert (answer.status_code, error(answer)["code"]) == (504, "wait_timeout")
        assert answer.headers["x-should-retry"] == "false"
        (job,) = client.get("/v1/jobs").json()["data"]
        assert job["id"] in error(answer)["message"]
        assert job["state"] == "queued"


def test_a_cancelled_job_is_a_conflict_to_whom_waits(client: httpx.Client, worker: StandInWorker) -> None:
    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        worker.jobs.cancel(claim.job.id)
        worker.stop(claim)

    with worker.working(work):
        answer = client.post("/v1/chat/completions", json=CHAT_REQUEST)
    assert (answer.status_code, error(answer)["code"]) == (409, "cancelled")


def test_many_clients_wait_without_holding_threads(client: httpx.Client) -> None:
    """More than the server's pool has threads (40), and than redis-py's has connections by default (100)."""
    spec = {"kind": "inference", "task": "feature-extraction"} | {"model": EMBEDDING_MODEL, "inputs": "Hello"}
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    with contextlib.ExitStack() as opened:
        for _ in range(120):
            answer = opened.enter_context(client.stream("GET", f"/v1/jobs/{job_id}/events"))
            assert next(events_of(answer)).data["state"] == "queued"
        assert client.get("/v1/jobs").status_code == 200


# The queue's server goes away


def test_a_dead_server_is_a_503_and_all_is_well_when_it_is_back(own_valkey: ValkeyServer, tmp_path: Path) -> None:
    with serving(settings_for(own_valkey.url, tmp_path)) as url, client_of(url) as client:
        spec = {"kind": "inference", "task": "text-generation", "model": CHAT_MODEL, "inputs": "Hello"}
        before = client.post("/v1/jobs", json=spec).json()["id"]
        own_valkey.sync()
        own_valkey.kill()
        for answer in (
            client.post("/v1/jobs", json=spec),
            client.get(f"/v1/jobs/{before}"),
            client.get("/v1/jobs"),
            client.get(f"/v1/jobs/{before}/events"),
            client.get("/v1/files"),
            client.get("/v1/adapters"),
            client.post("/v1/chat/completions", json=CHAT_REQUEST),
        ):
            assert (answer.status_code, error(answer)["code"]) == (503, "queue_unavailable")
            assert answer.headers["retry-after"] == "1"
            assert "x-should-retry" not in answer.headers
            assert error(answer)["type"] == "server_error"
            assert answer.elapsed.total_seconds() < AWAY_SECONDS
            assert own_valkey.password not in answer.text
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        own_valkey.restart()
        kept = client.get(f"/v1/jobs/{before}")
        assert kept.status_code == 200, kept.text
        assert client.post("/v1/jobs", json=spec).status_code == 202
        assert client.get("/readyz").json() == {"status": "ready", "reasons": []}


def test_a_frozen_server_is_a_503_too(own_valkey: ValkeyServer, tmp_path: Path) -> None:
    with serving(settings_for(own_valkey.url, tmp_path)) as url, client_of(url) as client:
        assert client.get("/v1/jobs").status_code == 200
        own_valkey.pause()
        answer = client.get("/v1/jobs")
        assert (answer.status_code, error(answer)["code"]) == (503, "queue_unavailable")
        assert answer.elapsed.total_seconds() < AWAY_SECONDS
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert "did not answer" in ready.json()["reasons"][0]
        own_valkey.resume()
        threading.Event().wait(HUNG_SECONDS)
        assert client.get("/v1/jobs").status_code == 200


def test_a_server_that_dies_in_the_midst_of_a_stream_ends_it_in_an_error_that_names_the_job(
    own_valkey: ValkeyServer, tmp_path: Path
) -> None:
    settings = settings_for(own_valkey.url, tmp_path)
    worker = StandInWorker(settings)
    with (
        serving(settings) as url,
        client_of(url) as client,
        worker.working(lambda worker: worker.say(worker.take(), "Hello")),
        client.stream("POST", "/v1/chat/completions", json=CHAT_REQUEST | {"stream": True}) as answer,
    ):
        events = events_of(answer)
        texts = [next(events).data["choices"][0]["delta"]["content"] for _ in range(2)]
        own_valkey.kill()
        last = next(events).data["error"]
        assert next(events, None) is None
    assert texts == ["", "Hello"]
    assert last["code"] == "queue_unavailable"
    assert answer.headers["x-tandem-job"] in last["message"]
    worker.jobs.close()


def test_a_server_without_its_append_only_file_is_not_ready(own_valkey: ValkeyServer, tmp_path: Path) -> None:
    settings = settings_for(own_valkey.url, tmp_path)
    worker = StandInWorker(settings)
    worker.jobs.redis.config_set("appendonly", "no")
    with serving(settings) as url, client_of(url) as client:
        ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "appendonly" in ready.json()["reasons"][0]
    worker.jobs.close()
