"""Batches through the unmodified OpenAI client and the API's own clerk; the rows are answered by the tests."""

import json
import threading
import time
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from tandem.services import Services
from tandem.settings import ApiSettings
from tests.integration.api.api_server import sdk_of, serving
from tests.integration.api.shard_worker import running_shards
from tests.integration.api.stand_in_worker import CHAT_MODEL, generated
from tests.valkey_server import ValkeyServer
from worker.attempt import Attempt

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.05


def line(number: int, url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": f"question {number}"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": url, "body": asked | body}


def upload(sdk: openai.OpenAI, *lines: dict[str, Any] | str) -> str:
    written = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines).encode()
    return sdk.files.create(file=("rows.jsonl", written), purpose="batch").id


def submit(sdk: openai.OpenAI, *lines: dict[str, Any] | str, window: Any = "24h", **options: Any) -> Batch:
    file_id = upload(sdk, *lines)
    return sdk.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window=window, **options)


def until(sdk: openai.OpenAI, batch: Batch, *statuses: str) -> Batch:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while batch.status not in statuses:
        assert batch.status not in ENDED, batch
        assert time.monotonic() < give_up_at, batch
        time.sleep(POLL_SECONDS)  # the API has no event for it
        batch = sdk.batches.retrieve(batch.id)
    return batch


def rows_of(sdk: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(each) for each in sdk.files.content(file_id).text.splitlines()]


def answer(attempt: Attempt) -> dict[str, Any]:
    return generated(f"answer to {attempt.job.spec['inputs'][-1]['content']}")


def test_a_batch_goes_from_a_file_to_a_file(sdk: openai.OpenAI, api_settings: ApiSettings) -> None:
    with running_shards(api_settings, answer):
        batch = submit(sdk, *(line(number) for number in range(300)), metadata={"a": "b"})
        assert (batch.status, batch.request_counts is not None) == ("validating", True)
        batch = until(sdk, batch, "completed")

    rows = rows_of(sdk, batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"row-{number}" for number in range(300)]
    bodies = [openai.types.chat.ChatCompletion.model_validate(row["response"]["body"], strict=True) for row in rows]
    assert [body.choices[0].message.content for body in bodies] == [f"answer to question {n}" for n in range(300)]
    assert len({body.id for body in bodies}) == 300
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (2100, 1200)
    assert batch.in_progress_at is not None
    assert batch.finalizing_at is not None
    assert batch.completed_at is not None
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    output = sdk.files.retrieve(str(batch.output_file_id))
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")


def test_responses_are_rows_as_well(sdk: openai.OpenAI, api_settings: ApiSettings) -> None:
    body = {"model": CHAT_MODEL, "input": "question"}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}
    refused = {**row, "custom_id": "b", "body": {**body, "background": True}}
    with running_shards(api_settings, answer):
        batch = sdk.batches.create(
            input_file_id=upload(sdk, row, refused), endpoint="/v1/responses", completion_window="24h"
        )
        batch = until(sdk, batch, "completed")
    (told,) = rows_of(sdk, batch.output_file_id)
    assert (
        openai.types.responses.Response.model_validate(told["response"]["body"]).output_text == "answer to question"
    )
    (left,) = rows_of(sdk, batch.error_file_id)
    assert left["response"]["body"]["error"]["param"] == "background"


def test_a_faulty_file_names_its_lines(sdk: openai.OpenAI) -> None:
    batch = until(sdk, submit(sdk, line(1), "{", line(2, "/v1/embeddings")), "failed")
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.line, error.code, error.param) for error in batch.errors.data] == [
        (2, "invalid_json_line", None),
        (3, "invalid_url", "url"),
    ]
    assert batch.failed_at is not None


def test_a_cancelled_batch_keeps_what_was_done(sdk: openai.OpenAI, api_settings: ApiSettings) -> None:
    holding = threading.Event()

    def holds(attempt: Attempt) -> dict[str, Any]:
        if attempt.job.spec["inputs"][-1]["content"] == "question 9":
            stopped = threading.Event()
            attempt.on_stop(stopped.set)
            holding.set()
            assert stopped.wait(PATIENCE_SECONDS)
            attempt.check()
        return answer(attempt)

    with running_shards(api_settings, holds):
        batch = submit(sdk, *(line(number) for number in range(10)))
        assert holding.wait(PATIENCE_SECONDS)
        assert sdk.batches.cancel(batch.id).status == "cancelling"
        batch = until(sdk, batch, "cancelled")

    done, left = rows_of(sdk, batch.output_file_id), rows_of(sdk, batch.error_file_id)
    assert {row["custom_id"] for row in done} | {row["custom_id"] for row in left} == {f"row-{n}" for n in range(10)}
    assert done
    assert {row["error"]["code"] for row in left} == {"batch_cancelled"}
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(done), len(left))
    assert batch.cancelling_at is not None
    assert batch.cancelled_at is not None
    assert sdk.batches.cancel(batch.id).status == "cancelled"


def test_a_batch_without_a_worker_expires(sdk: openai.OpenAI, services: Services) -> None:
    batch = submit(sdk, line(1), window="2s")
    until(sdk, batch, "in_progress")
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while (batch := sdk.batches.retrieve(batch.id)).status != "expired":
        services.jobs.wake()  # what any worker does
        assert time.monotonic() < give_up_at, batch
        time.sleep(POLL_SECONDS)
    assert batch.expired_at is not None
    (left,) = rows_of(sdk, batch.error_file_id)
    assert (left["response"], left["error"]["code"]) == (None, "batch_expired")


def test_another_process_takes_over(api_settings: ApiSettings, own_valkey: ValkeyServer) -> None:
    """An API that stops gives its batches back; the next one goes on with them. No third one serves their queue."""
    settings = api_settings.model_copy(update={"redis_url": own_valkey.url})
    with serving(settings) as url, sdk_of(url) as sdk:
        batch = until(sdk, submit(sdk, line(1)), "in_progress")
    with serving(settings) as url, sdk_of(url) as sdk, running_shards(settings, answer):
        batch = until(sdk, batch, "completed")
        assert len(rows_of(sdk, batch.output_file_id)) == 1


def test_lists_have_pages(sdk: openai.OpenAI) -> None:
    made = [submit(sdk, line(number)).id for number in range(3)]
    page = sdk.batches.list(limit=2)
    assert [batch.id for batch in page.data] == made[:0:-1]
    assert page.has_more
    assert [batch.id for batch in page] == made[::-1]


def test_the_same_request_with_a_key_is_the_same_batch(sdk: openai.OpenAI) -> None:
    file_id = upload(sdk, line(1))

    def create(window: Any = "24h") -> Batch:
        return sdk.batches.create(
            input_file_id=file_id,
            endpoint=CHAT,
            completion_window=window,
            output_expires_after={"anchor": "created_at", "seconds": 3600},
            extra_headers={"Idempotency-Key": "k"},
        )

    assert create().id == create().id
    with pytest.raises(openai.ConflictError):
        create("12h")


def test_files_that_expire_say_so(sdk: openai.OpenAI) -> None:
    batch = submit(sdk, line(1, temperature=9), output_expires_after={"anchor": "created_at", "seconds": 3600})
    batch = until(sdk, batch, "completed")
    error_file = sdk.files.retrieve(str(batch.error_file_id))
    assert error_file.expires_at == error_file.created_at + 3600


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"endpoint": "/v1/moderations"}, 400, "endpoint"),
        ({"completion_window": "24"}, 400, "completion_window"),
        ({"completion_window": "90d"}, 400, "completion_window"),
        ({"input_file_id": "file-" + "0" * 24}, 404, "input_file_id"),
        ({"input_file_id": "x"}, 400, "input_file_id"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "output_expires_after.seconds"),
        ({"priority": "high"}, 400, "priority"),
    ],
)
def test_a_request_that_cannot_be_used_names_its_field(
    client: httpx.Client, sdk: openai.OpenAI, change: dict[str, Any], status: int, param: str
) -> None:
    asked = {"input_file_id": upload(sdk, line(1)), "endpoint": CHAT, "completion_window": "24h"}
    answer = client.post("/v1/batches", json=asked | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_a_file_of_another_purpose_is_refused(sdk: openai.OpenAI) -> None:
    file = sdk.files.create(file=("rows.jsonl", b"{}"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="purpose 'batch'"):
        sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


def test_a_batch_that_is_not_there_is_a_404(sdk: openai.OpenAI) -> None:
    for call in (sdk.batches.retrieve, sdk.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="there is no batch"):
            call("batch_" + "0" * 24)
