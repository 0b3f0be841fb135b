"""The job routes over a real queue."""

import json

import httpx
import pytest

from tandem.errors import PromptTooLong
from tests.integration.api.calls import CHAT, error, submit
from tests.integration.api.stand_in_worker import CHAT_MODEL, WORKER, StandInWorker, generated

# Submitting


def test_a_submitted_job_is_queued_and_located(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json=CHAT)
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["x-request-id"].startswith("req_")
    assert (job["object"], job["state"], job["attempt"], job["failure"]) == ("job", "queued", 0, None)
    assert (job["kind"], job["task"], job["model"]) == ("inference", "text-generation", CHAT_MODEL)
    assert job["spec"]["inputs"] == [{"role": "user", "content": "Hello"}]
    assert not {"lane", "owner", "worker", "sequence"} & set(job)
    assert client.get(answer.headers["location"]).json() == job


def test_the_same_key_and_body_name_the_same_job(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first = client.post("/v1/jobs", json=CHAT, headers=headers)
    second = client.post("/v1/jobs", json=CHAT, headers=headers)
    assert (first.status_code, second.status_code) == (202, 200)
    assert second.json()["id"] == first.json()["id"]
    assert second.headers["location"] == first.headers["location"]
    assert len(client.get("/v1/jobs").json()["data"]) == 1


def test_the_same_key_with_another_body_is_a_conflict(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "order-1"}
    client.post("/v1/jobs", json=CHAT, headers=headers)
    answer = client.post("/v1/jobs", json=CHAT | {"inputs": "another"}, headers=headers)
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    assert error(answer)["code"] == "idempotency_key_reused"
    assert error(answer)["param"] == "Idempotency-Key"


@pytest.mark.parametrize(
    ("changes", "status", "code", "param", "said"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found", "model", CHAT_MODEL),
        ({"task": "telepathy"}, 400, "task_not_supported", "task", "'fill-mask'"),
        ({"task": "fill-mask", "inputs": "a [MASK]"}, 400, "task_not_supported", "task", "text-generation"),
        ({"adapter": "ft:none:default:x:0"}, 404, "adapter_not_found", "adapter", "/v1/adapters"),
        ({"model": "ft:none:default:x:0"}, 404, "adapter_not_found", "model", "/v1/adapters"),
        ({"kind": "dream"}, 400, "invalid_request", "kind", "'finetune'"),
        ({"inputs": 7}, 400, "invalid_request", "inputs", "string"),
        ({"inputs": []}, 400, "invalid_request", "inputs", "at least 1"),
        ({"parameters": {"temperature": 3}}, 400, "invalid_request", "parameters.temperature", "2"),
        ({"parameters": {"max_new_tokens": -1}}, 400, "invalid_request", "parameters.max_new_tokens", "0"),
        ({"parameters": {"max_new_tokens": 0}}, 400, "invalid_request", "parameters", "`max_new_tokens` is 0"),
        ({"parameters": {"beams": 4}}, 400, "invalid_request", "parameters.beams", "unsupported parameter"),
        (
            {"inputs": [{"role": "king", "content": ""}]},
            400,
            "invalid_request",
            "inputs.0.role",
            "'assistant'",
        ),
    ],
)
def test_a_bad_spec_is_refused_by_its_field(
    client: httpx.Client, changes: dict[str, object], status: int, code: str, param: str, said: str
) -> None:
    answer = client.post("/v1/jobs", json=CHAT | changes)
    found = error(answer)
    assert (answer.status_code, found["code"], found["param"]) == (status, code, param)
    assert said in found["message"]
    assert found["type"] == "invalid_request_error"
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("content", "content_type", "said"),
    [
        (b"{", "application/json", "not JSON"),
        (b"", "application/json", "no body"),
        (json.dumps(CHAT).encode(), "text/plain", "Content-Type: application/json"),
        (b'{"inputs": "\\ud800"}', "application/json", "kind"),
        (b"\xff\xfe", "application/json", "body"),
        (b"[" * 40_000, "application/json", "body"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(
    client: httpx.Client, content: bytes, content_type: str, said: str
) -> None:
    answer = client.post("/v1/jobs", content=content, headers={"Content-Type": content_type})
    assert answer.status_code == 400
    assert error(answer)["code"] == "invalid_request"
    assert said in error(answer)["message"]


def test_a_lone_surrogate_in_a_text_is_refused(client: httpx.Client) -> None:
    """JSON can spell half of a character; Redis and tokenizers cannot take it."""
    body = json.dumps(CHAT | {"inputs": "half \ud800"})
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert error(answer)["param"] == "inputs"


def test_a_long_idempotency_key_is_refused_with_its_limit(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json=CHAT, headers={"Idempotency-Key": "k" * 256})
    assert answer.status_code == 400
    assert error(answer)["param"] == "Idempotency-Key"
    assert "255" in error(answer)["message"]


# Looking, cancelling, the result


def test_an_unknown_job_is_named(client: httpx.Client) -> None:
    for answer in (
        client.get("/v1/jobs/job_none"),
        client.post("/v1/jobs/job_none/cancel"),
        client.get("/v1/jobs/job_none/result"),
        client.get("/v1/jobs/job_none/events"),
        client.get("/v1/jobs", params={"after": "job_none"}),
    ):
        assert answer.status_code == 404
        assert error(answer)["code"] == "job_not_found"
        assert "job_none" in error(answer)["message"]


def test_lists_come_in_pages_newest_first(client: httpx.Client) -> None:
    ids = [submit(client) for _ in range(5)]
    newest_first = ids[::-1]
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    assert (first["object"], first["has_more"]) == ("list", True)
    assert (first["first_id"], first["last_id"]) == (newest_first[0], newest_first[1])
    seen, page = [], first
    while True:
        seen += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        page = client.get("/v1/jobs", params={"limit": 2, "after": page["last_id"]}).json()
    assert seen == newest_first
    assert "spec" not in first["data"][0]


def test_an_empty_list_is_a_page(client: httpx.Client) -> None:
    assert client.get("/v1/jobs").json() == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


def test_lists_are_filtered_by_state_kind_and_model(client: httpx.Client) -> None:
    cancelled, queued = submit(client), submit(client)
    client.post(f"/v1/jobs/{cancelled}/cancel")

    def ids(**filters: str) -> list[str]:
        return [job["id"] for job in client.get("/v1/jobs", params=filters).json()["data"]]

    assert ids(state="queued") == [queued]
    assert ids(state="cancelled", kind="inference", model=CHAT_MODEL) == [cancelled]
    assert ids(kind="finetune") == []
    assert ids(model="another") == []


@pytest.mark.parametrize(
    ("filters", "param", "said"),
    [
        ({"limit": 0}, "limit", "1"),
        ({"limit": 101}, "limit", "100"),
        ({"state": "asleep"}, "state", "'queued'"),
        ({"kind": "dream"}, "kind", "'finetune'"),
    ],
)
def test_a_bad_filter_is_refused_by_its_name(
    client: httpx.Client, filters: dict[str, str], param: str, said: str
) -> None:
    answer = client.get("/v1/jobs", params=filters)
    assert answer.status_code == 400
    assert error(answer)["param"] == param
    assert said in error(answer)["message"]


def test_a_result_is_there_once_the_job_has_succeeded(client: httpx.Client, worker: StandInWorker) -> None:
    job_id = submit(client)
    claim = worker.take()
    early = client.get(f"/v1/jobs/{job_id}/result")
    assert (early.status_code, error(early)["code"]) == (409, "result_not_ready")
    assert early.headers["x-should-retry"] == "false"
    worker.succeed(claim, generated("Hi there"))
    assert client.get(f"/v1/jobs/{job_id}/result").json() == generated("Hi there")
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["attempt"], job["result"]) == ("succeeded", 1, generated("Hi there"))
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]


def test_a_failed_job_answers_with_its_failure_and_its_status(client: httpx.Client, worker: StandInWorker) -> None:
    job_id = submit(client)
    worker.fail(worker.take(), PromptTooLong("9000 tokens do not fit the model's 2048", param="inputs"))
    answer = client.get(f"/v1/jobs/{job_id}/result")
    assert answer.status_code == 400
    assert error(answer) == {
        "message": "9000 tokens do not fit the model's 2048",
        "type": "invalid_request_error",
        "param": "inputs",
        "code": "context_length_exceeded",
    }
    failure = client.get(f"/v1/jobs/{job_id}").json()["failure"]
    assert (failure["code"], failure["retryable"]) == ("context_length_exceeded", False)


def test_a_failure_that_nobody_foresaw_is_a_server_error(client: httpx.Client, worker: StandInWorker) -> None:
    job_id = submit(client)
    worker.fail(worker.take(), ZeroDivisionError("division by zero"))
    answer = client.get(f"/v1/jobs/{job_id}/result")
    assert (answer.status_code, error(answer)["code"]) == (500, "internal_error")
    assert answer.headers["x-should-retry"] == "false"


def test_a_queued_job_is_cancelled_at_once(client: httpx.Client) -> None:
    job_id = submit(client)
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    answer = client.get(f"/v1/jobs/{job_id}/result")
    assert (answer.status_code, error(answer)["code"]) == (409, "cancelled")
    assert answer.headers["x-should-retry"] == "false"


def test_a_running_job_is_asked_to_stop(client: httpx.Client, worker: StandInWorker) -> None:
    job_id = submit(client)
    claim = worker.take()
    job = client.post(f"/v1/jobs/{job_id}/cancel").json()
    assert (job["state"], job["cancel_requested"]) == ("running", True)
    assert worker.jobs.renew(WORKER, {job_id: claim.fence}) == {job_id: "cancelled"}


def test_an_ended_job_stays_as_it_is_when_cancelled(client: httpx.Client, worker: StandInWorker) -> None:
    job_id = submit(client)
    worker.succeed(worker.take(), generated("done"))
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "succeeded"
