"""A request with an Idempotency-Key may be sent again: at every door that creates something."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import httpx
import pytest

from tandem.services import Services
from tests.integration.api.calls import CHAT, error
from tests.integration.api.stand_in_worker import CHAT_MODEL, EMBEDDING_MODEL, StandInWorker, generated

KEY = {"Idempotency-Key": "order-1"}
Send = Callable[[httpx.Client, str], httpx.Response]


def _submit(client: httpx.Client, text: str) -> httpx.Response:
    return client.post("/v1/jobs", json=CHAT | {"inputs": text}, headers=KEY)


def _chat(client: httpx.Client, text: str) -> httpx.Response:
    body = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": text}]}
    return client.post("/v1/chat/completions", json=body, headers=KEY)


def _embed(client: httpx.Client, text: str) -> httpx.Response:
    return client.post("/v1/embeddings", json={"model": EMBEDDING_MODEL, "input": text}, headers=KEY)


def upload(
    client: httpx.Client, text: str, *, name: str = "rows.jsonl", purpose: str = "batch", key: str = "order-1"
) -> httpx.Response:
    headers = {"Idempotency-Key": key}
    files = {"file": (name, text.encode())}
    return client.post("/v1/files", files=files, data={"purpose": purpose}, headers=headers)


def answered(worker: StandInWorker, send: Send) -> AbstractContextManager[None]:
    """A context in which the doors that wait for a job get one that succeeds."""
    models = {_chat: CHAT_MODEL, _embed: EMBEDDING_MODEL}
    if send not in models:
        return nullcontext()
    answering: AbstractContextManager[None] = worker.answering(
        {**generated("Hi"), "rows": [[1.0]]}, model=models[send]
    )
    return answering


def test_every_door_that_creates_takes_a_key(api_url: str) -> None:
    """All POST routes but those that act on something that is there already; adapters, whose id is their content's;
    uploads, which come to nothing unless they are completed, and are completed once; and webhook endpoints, which
    their owner sees and deletes."""
    paths = httpx.get(f"{api_url}/openapi.json").json()["paths"]
    taking, acting = set(), set()
    for path, methods in paths.items():
        if "post" in methods:
            names = {parameter["name"] for parameter in methods["post"].get("parameters", [])}
            (taking if "Idempotency-Key" in names else acting).add(path)
    assert taking == {
        "/v1/jobs",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/files",
        "/v1/batches",
        "/v1/fine_tuning/jobs",
        "/hf/models/{model}",
        "/hf/models/{model}/pipeline/{task}",
        "/hf/models/{model}/v1/chat/completions",
    }
    assert {path.rpartition("/")[2] for path in acting} == {
        "adapters",
        "cancel",
        "pause",
        "pin",
        "unpin",
        "resume",
        "requeue",
        "uploads",
        "parts",
        "complete",
        "load_lora_adapter",
        "unload_lora_adapter",
        "webhook_endpoints",
        "{webhook_endpoint_id}",
        "rotate_secret",
        "test",
    }


def test_the_same_body_is_the_same_in_another_order(client: httpx.Client) -> None:
    first = client.post("/v1/jobs", json=CHAT, headers=KEY)
    again = client.post("/v1/jobs", json=dict(reversed(CHAT.items())), headers=KEY)
    assert (first.status_code, again.json()["id"]) == (202, first.json()["id"])


def test_the_properties_of_a_schema_reach_the_worker_in_their_order(
    client: httpx.Client, worker: StandInWorker
) -> None:
    """Symptom: an answer had its fields in the order of the alphabet. Cause: the spec was stored with sorted keys,
    while constrained output writes properties as the schema lists them. Fix: only the idempotency digest sorts."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    parameters = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    client.post("/v1/jobs", json=CHAT | {"parameters": parameters})
    stored = worker.take().job.spec["parameters"]["response_format"]["json_schema"]["schema"]
    assert list(stored["properties"]) == ["name", "age"]


@pytest.mark.parametrize("send", [_submit, _chat, _embed, upload])
def test_the_same_key_and_body_is_answered_with_the_first_answer(
    client: httpx.Client, worker: StandInWorker, send: Send
) -> None:
    with answered(worker, send):
        first = send(client, "one")
    again = send(client, "one")
    assert again.json() == first.json()
    assert len(client.get("/v1/jobs").json()["data"] + client.get("/v1/files").json()["data"]) == 1


@pytest.mark.parametrize("send", [_submit, _chat, _embed, upload])
def test_the_same_key_and_another_body_is_a_conflict(client: httpx.Client, worker: StandInWorker, send: Send) -> None:
    with answered(worker, send):
        assert send(client, "one").status_code in {200, 202}
    answer = send(client, "two")
    assert (answer.status_code, error(answer)["code"]) == (409, "idempotency_key_reused")
    assert answer.headers["x-should-retry"] == "false"
    assert error(answer)["param"] == "Idempotency-Key"
    assert len(client.get("/v1/jobs").json()["data"] + client.get("/v1/files").json()["data"]) == 1


# Files have more to them than a body


def test_another_name_or_purpose_is_another_upload(client: httpx.Client) -> None:
    upload(client, "rows")
    assert upload(client, "rows", name="other.jsonl").status_code == 409
    assert upload(client, "rows", purpose="fine-tune").status_code == 409
    assert upload(client, "rows", key="order-2").status_code == 200


def test_an_upload_without_a_key_is_always_a_new_file(client: httpx.Client) -> None:
    answers = [client.post("/v1/files", files={"file": b"x"}, data={"purpose": "batch"}) for _ in range(2)]
    assert len({answer.json()["id"] for answer in answers}) == 2


def test_a_key_outlives_neither_its_time_nor_its_file(client: httpx.Client, services: Services) -> None:
    """A deleted file is not given out again: the upload makes a new one, and the key names that."""
    first = upload(client, "rows").json()["id"]
    client.delete(f"/v1/files/{first}")
    second = upload(client, "rows").json()["id"]
    assert second != first
    assert upload(client, "rows").json()["id"] == second
    (key,) = services.jobs.redis.keys("tandem:file-key:*")
    assert 86_000 < services.jobs.redis.ttl(key) <= 86_400


def test_uploads_at_the_same_moment_with_one_key_are_one_file(api_url: str, client: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: upload(client, "rows").json()["id"], range(24)))
    assert len(set(answers)) == 1
    assert [file["id"] for file in client.get("/v1/files").json()["data"]] == answers[:1]
