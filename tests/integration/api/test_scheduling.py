"""When and how a job is run, over HTTP: priority, delay, deadline, pause, retries; at the OpenAI doors as well."""

import base64
import json
import time

import httpx
import openai
import pytest
from pydantic import SecretStr

from tandem.errors import OutOfMemory
from tandem.job import Failure, JobState
from tandem.settings import ApiSettings
from tests.integration.api.api_server import client_of, serving
from tests.integration.api.calls import CHAT, error, submit
from tests.integration.api.sse import events_of
from tests.integration.api.stand_in_worker import CHAT_MODEL, EMBEDDING_MODEL, WORKER, StandInWorker, generated

CHAT_REQUEST = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "Hello"}]}
EMBEDDING_REQUEST = {"model": EMBEDDING_MODEL, "input": "Hello"}
SOON_SECONDS = 0.05
"""A deadline that passes while the test looks on."""


def look(client: httpx.Client, job_id: str) -> dict[str, object]:
    found: dict[str, object] = client.get(f"/v1/jobs/{job_id}").json()
    return found


def test_a_job_shows_how_it_is_scheduled(client: httpx.Client) -> None:
    asked = {"priority": "high", "delay_seconds": 60, "deadline_seconds": 600, "metadata": {"customer": "17"}}
    job = look(client, submit(client, **asked))
    assert (job["priority"], job["metadata"], job["paused"]) == ("high", {"customer": "17"}, False)
    assert (job["retries"], job["crashes"], job["dead"]) == (0, 0, False)
    assert isinstance(job["created_at"], float)
    assert job["not_before"] == pytest.approx(job["created_at"] + 60, abs=0.01)
    assert job["deadline"] == pytest.approx(job["created_at"] + 600, abs=0.01)
    (listed,) = client.get("/v1/jobs").json()["data"]
    assert listed == {name: value for name, value in job.items() if name not in {"spec", "result"}}


def test_the_spec_comes_back_with_the_defaults_of_what_was_left_out(client: httpx.Client) -> None:
    spec = look(client, submit(client, parameters={"seed": 7}, retry={"max_retries": 1}))["spec"]
    assert isinstance(spec, dict)
    assert (spec["parameters"]["seed"], spec["parameters"]["max_new_tokens"]) == (7, 256)
    assert spec["retry"] == {"max_retries": 1, "backoff_seconds": 2.0, "max_backoff_seconds": 600.0}
    assert (spec["priority"], spec["webhook"], spec["stream"]) == ("normal", None, False)


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"priority": "utmost"}, "priority", "'urgent'"),
        ({"delay_seconds": -1}, "delay_seconds", "0"),
        ({"deadline_seconds": 0}, "deadline_seconds", "0"),
        ({"retry": {"max_retries": 21}}, "retry.max_retries", "20"),
        ({"retry": {"tries": 2}}, "retry.tries", "unsupported parameter"),
        ({"webhook": {"address": "x"}}, "webhook.url", "missing"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "16"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"delay_seconds": 1, "not_before": 1}, None, "give one"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_its_field(
    client: httpx.Client, changes: dict[str, object], param: str | None, said: str
) -> None:
    answer = client.post("/v1/jobs", json=CHAT | changes)
    assert (answer.status_code, error(answer)["code"]) == (400, "invalid_request")
    assert error(answer)["param"] == param
    assert said in error(answer)["message"]


def test_a_more_urgent_job_goes_first(client: httpx.Client, worker: StandInWorker) -> None:
    ordinary, urgent = submit(client), submit(client, priority="urgent")
    assert [worker.take().job.id for _ in range(2)] == [urgent, ordinary]


# Deadlines


def test_an_expired_job_has_no_result_and_is_not_asked_for_again(client: httpx.Client, worker: StandInWorker) -> None:
    job_id = submit(client, deadline_seconds=SOON_SECONDS)
    time.sleep(2 * SOON_SECONDS)
    assert worker.jobs.wake() == (0, 1)
    assert [job["id"] for job in client.get("/v1/jobs", params={"state": "expired"}).json()["data"]] == [job_id]
    answer = client.get(f"/v1/jobs/{job_id}/result")
    assert (answer.status_code, error(answer)["code"]) == (504, "deadline_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    assert job_id in error(answer)["message"]
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        assert [event.data["state"] for event in events_of(stream)] == ["queued", "expired"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT_REQUEST),
        ("/v1/chat/completions", CHAT_REQUEST | {"stream": True}),
        ("/v1/embeddings", EMBEDDING_REQUEST),
    ],
)
def test_a_deadline_in_the_header_bounds_the_wait(
    client: httpx.Client, worker: StandInWorker, path: str, body: dict[str, object]
) -> None:
    def work(worker: StandInWorker) -> None:
        claim = worker.take(str(body["model"]))
        assert claim.seconds_left is not None
        worker.jobs.finish(claim.job.id, claim.fence, JobState.EXPIRED)

    with worker.working(work):
        answer = client.post(path, json=body, headers={"x-tandem-deadline-seconds": "5"})
    assert (answer.status_code, error(answer)["code"]) == (504, "deadline_exceeded")
    assert answer.headers["x-should-retry"] == "false"


def test_a_stream_whose_job_expires_ends_in_that_error(client: httpx.Client, worker: StandInWorker) -> None:
    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        worker.say(claim, "Hello")
        worker.jobs.finish(claim.job.id, claim.fence, JobState.EXPIRED)

    with (
        worker.working(work),
        client.stream("POST", "/v1/chat/completions", json=CHAT_REQUEST | {"stream": True}) as answer,
    ):
        last = list(events_of(answer))[-1].data
    assert last["error"]["code"] == "deadline_exceeded"


# Priorities at the OpenAI doors


@pytest.mark.parametrize(
    ("path", "body", "headers", "priority"),
    [
        ("/v1/chat/completions", {}, {}, "normal"),
        ("/v1/chat/completions", {}, {"x-tandem-priority": "urgent"}, "urgent"),
        ("/v1/chat/completions", {"service_tier": "flex"}, {}, "low"),
        ("/v1/chat/completions", {"service_tier": "priority"}, {}, "high"),
        ("/v1/chat/completions", {"service_tier": "auto"}, {}, "normal"),
        ("/v1/chat/completions", {"service_tier": "flex"}, {"x-tandem-priority": "normal"}, "normal"),
        ("/v1/embeddings", {}, {"x-tandem-priority": "low"}, "low"),
    ],
)
def test_a_request_says_how_urgent_it_is(
    client: httpx.Client,
    worker: StandInWorker,
    path: str,
    body: dict[str, str],
    headers: dict[str, str],
    priority: str,
) -> None:
    request = EMBEDDING_REQUEST if path.endswith("embeddings") else CHAT_REQUEST
    with worker.answering({**generated("Hi"), "rows": []}, model=str(request["model"])):
        answer = client.post(path, json=request | body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert look(client, answer.headers["x-tandem-job"])["priority"] == priority


@pytest.mark.parametrize(
    ("headers", "said"), [({"x-tandem-priority": "utmost"}, "'urgent'"), ({"x-tandem-deadline-seconds": "0"}, "0")]
)
def test_a_header_that_cannot_be_is_refused_by_its_name(
    client: httpx.Client, headers: dict[str, str], said: str
) -> None:
    answer = client.post("/v1/embeddings", json=EMBEDDING_REQUEST, headers=headers)
    assert (answer.status_code, error(answer)["param"]) == (400, *headers)
    assert said in error(answer)["message"]


@pytest.mark.parametrize(("asked", "served"), [("flex", "flex"), ("auto", "default")])
def test_the_sdk_gets_its_tier_back(sdk: openai.OpenAI, worker: StandInWorker, asked: str, served: str) -> None:
    with worker.answering(generated("Hi")):
        answer = sdk.chat.completions.create(**CHAT_REQUEST, service_tier=asked)
    assert answer.service_tier == served
    with worker.answering(generated("Hi"), "Hi"):
        chunks = list(sdk.chat.completions.create(**CHAT_REQUEST, service_tier=asked, stream=True))
    assert {chunk.service_tier for chunk in chunks} == {served}


# Pausing


def test_a_paused_job_is_not_begun_until_it_is_resumed(client: httpx.Client, worker: StandInWorker) -> None:
    held, other = submit(client), submit(client)
    paused = client.post(f"/v1/jobs/{held}/pause").json()
    assert (paused["id"], paused["state"], paused["paused"]) == (held, "queued", True)
    assert worker.take().job.id == other
    assert client.post(f"/v1/jobs/{held}/resume").json()["paused"] is False
    assert worker.take().job.id == held


def test_a_running_job_is_asked_to_stop_and_wait(client: httpx.Client, worker: StandInWorker) -> None:
    job_id = submit(client)
    claim = worker.take()
    job = client.post(f"/v1/jobs/{job_id}/pause").json()
    assert (job["state"], job["paused"]) == ("running", True)
    assert worker.jobs.renew(WORKER, {job_id: claim.fence}) == {job_id: "paused"}
    worker.jobs.release(job_id, claim.fence)
    assert (look(client, job_id)["state"], look(client, job_id)["paused"]) == ("queued", True)


def test_an_ended_job_is_neither_paused_nor_resumed(client: httpx.Client) -> None:
    job_id = submit(client)
    client.post(f"/v1/jobs/{job_id}/cancel")
    for action in ("pause", "resume"):
        job = client.post(f"/v1/jobs/{job_id}/{action}").json()
        assert (job["state"], job["paused"]) == ("cancelled", False)


# Retries


def test_a_repeated_attempt_does_not_repeat_its_text_in_a_stream(client: httpx.Client, worker: StandInWorker) -> None:
    def work(worker: StandInWorker) -> None:
        first = worker.take()
        worker.say(first, "Hello", " to")
        worker.jobs.retry(first.job.id, first.fence, Failure.of(OutOfMemory()), 0.01)
        second = worker.take()
        worker.say(second, "Hel", "lo to you")
        worker.succeed(second, generated("Hello to you"))

    body = CHAT_REQUEST | {"stream": True, "temperature": 0}
    with worker.working(work), client.stream("POST", "/v1/chat/completions", json=body) as answer:
        sent = [json.loads(event.lines[0]) for event in events_of(answer) if event.lines != ["[DONE]"]]
    pieces = [chunk["choices"][0]["delta"].get("content") for chunk in sent]
    assert [piece for piece in pieces if piece] == ["Hello", " to", " you"]
    job = look(client, answer.headers["x-tandem-job"])
    assert (job["state"], job["attempt"], job["retries"]) == ("succeeded", 2, 1)


# Webhooks


def test_a_webhook_that_could_not_be_told_is_refused(client: httpx.Client, api_settings: ApiSettings) -> None:
    hook = {"webhook": {"url": "https://example.com/hook"}}
    without_a_secret = client.post("/v1/jobs", json=CHAT | hook)
    assert (without_a_secret.status_code, error(without_a_secret)["param"]) == (400, "webhook")
    assert "TANDEM_WEBHOOK_SECRET" in error(without_a_secret)["message"]
    secret = SecretStr("whsec_" + base64.b64encode(bytes(32)).decode())
    with serving(api_settings.model_copy(update={"webhook_secret": secret})) as url, client_of(url) as telling:
        assert submit(telling, **hook)
        inside = telling.post("/v1/jobs", json=CHAT | {"webhook": {"url": "https://127.0.0.1/hook"}})
        assert (inside.status_code, error(inside)["param"]) == (400, "webhook.url")
