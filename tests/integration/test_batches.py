"""Batches through the unmodified OpenAI client, over a whole service with real models."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch, Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from typer.testing import CliRunner

from tandem.cli import app
from tandem.embedded_service import EmbeddedService
from tandem.errors import Conflict

CHAT, EMBEDDING = "smollm2-135m-instruct", "all-minilm-l6-v2"
ROWS, BROKEN = 2000, 20
"""The broken ones stand evenly between the others."""
PATIENCE_SECONDS = 240.0
POLL_SECONDS = 0.2
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture
def sdk(service: EmbeddedService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{service.api_url}/v1", api_key=service.api_key, _strict_response_validation=True
    ) as sdk:
        yield sdk


def line(number: int, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": f"row-{number}", "method": "POST", "url": url, "body": body}


def submit(sdk: openai.OpenAI, lines: list[dict[str, Any]], **options: Any) -> Batch:
    content = "".join(f"{json.dumps(each)}\n" for each in lines).encode()
    file = sdk.files.create(file=("rows.jsonl", io.BytesIO(content)), purpose="batch")
    return sdk.batches.create(input_file_id=file.id, endpoint=lines[0]["url"], completion_window="24h", **options)


def ended(sdk: openai.OpenAI, batch: Batch) -> Batch:
    """Poll until the end, as OpenAI's documents say; counts never fall."""
    give_up_at, seen = time.monotonic() + PATIENCE_SECONDS, 0
    while batch.status not in ENDED:
        assert time.monotonic() < give_up_at, batch
        time.sleep(POLL_SECONDS)  # the API has no event for it
        batch = sdk.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        assert batch.request_counts.completed >= seen
        seen = batch.request_counts.completed
    return batch


def rows_of(sdk: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(each) for each in sdk.files.content(file_id).text.splitlines()]


def test_2000_rows_of_which_20_are_broken(sdk: openai.OpenAI) -> None:
    """Broken bodies are told before anything runs; the other rows are answered, in the order of the file."""
    every = ROWS // BROKEN
    lines = [
        line(
            number,
            "/v1/embeddings",
            {"model": EMBEDDING, "input": f"apple {number}", "dimensions": -1 if number % every == 0 else 4},
        )
        for number in range(ROWS)
    ]
    batch = ended(sdk, submit(sdk, lines, metadata={"purpose": "test"}))

    assert (batch.status, batch.metadata, batch.model) == ("completed", {"purpose": "test"}, EMBEDDING)
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": ROWS, "completed": ROWS - BROKEN, "failed": BROKEN}
    answered, refused = rows_of(sdk, batch.output_file_id), rows_of(sdk, batch.error_file_id)
    assert [row["custom_id"] for row in answered] == [f"row-{n}" for n in range(ROWS) if n % every]
    assert [row["custom_id"] for row in refused] == [f"row-{n}" for n in range(ROWS) if n % every == 0]
    assert {row["response"]["body"]["error"]["param"] for row in refused} == {"dimensions"}
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [error.line for error in batch.errors.data] == [n + 1 for n in range(ROWS) if n % every == 0]

    bodies = [CreateEmbeddingResponse.model_validate(row["response"]["body"]) for row in answered]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(body.usage.prompt_tokens for body in bodies)
    last = sdk.embeddings.create(**lines[-1]["body"], encoding_format="float")
    assert bodies[-1].data[0].embedding == pytest.approx(last.data[0].embedding, abs=1e-5)


def test_a_row_is_answered_as_its_route_would(sdk: openai.OpenAI) -> None:
    """Of each endpoint that generates: the same text, tokens and shape."""
    messages: Any = [{"role": "user", "content": "Say the number 7."}]
    chat = {"model": CHAT, "messages": messages, "max_tokens": 6, "temperature": 0, "logprobs": True}
    text = {"model": CHAT, "prompt": ["One, two,", "Red, green,"], "max_tokens": 3, "temperature": 0}
    response = {"model": CHAT, "input": "Say the number 7.", "max_output_tokens": 6, "temperature": 0}
    batches = [
        submit(sdk, [line(1, url, body)])
        for url, body in (("/v1/chat/completions", chat), ("/v1/completions", text), ("/v1/responses", response))
    ]
    bodies = [rows_of(sdk, ended(sdk, batch).output_file_id)[0]["response"]["body"] for batch in batches]

    in_batch = ChatCompletion.model_validate(bodies[0])
    alone = sdk.chat.completions.create(**chat)
    assert in_batch.choices[0].message == alone.choices[0].message
    assert in_batch.usage is not None
    assert alone.usage is not None
    # How many of the prompt's tokens were read before is another matter.
    assert in_batch.usage.prompt_tokens == alone.usage.prompt_tokens
    assert in_batch.usage.completion_tokens == alone.usage.completion_tokens
    assert in_batch.choices[0].logprobs is not None
    assert Completion.model_validate(bodies[1]).choices == sdk.completions.create(**text).choices
    assert Response.model_validate(bodies[2]).output_text == sdk.responses.create(**response).output_text


def test_the_command_line_goes_from_a_file_to_answers(service_environment: dict[str, str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    bodies = [{"model": EMBEDDING, "input": "a"}, {"model": EMBEDDING, "input": ""}]
    rows.write_text("\n".join(json.dumps(line(n, "/v1/embeddings", body)) for n, body in enumerate(bodies)))

    def tandem(*arguments: str, code: int = 0) -> str:
        ended = CliRunner(env=service_environment).invoke(app, ["batch", *arguments])
        assert ended.exit_code == code, ended.output
        return ended.stdout

    batch_id, told = tandem("submit", str(rows), "--endpoint", "/v1/embeddings", "--wait").splitlines()
    assert told == "completed: 1 of 2 rows answered, 1 failed"
    assert "line 2: `input`" in tandem("show", batch_id)
    assert json.loads(tandem("show", batch_id, "--json"))["status"] == "completed"
    assert json.loads(tandem("output", batch_id))["custom_id"] == "row-0"
    assert json.loads(tandem("output", batch_id, "--errors"))["custom_id"] == "row-1"
    assert batch_id in tandem("list", "--limit", "1")
    ended = CliRunner(env=service_environment).invoke(app, ["batch", "cancel", batch_id])
    assert isinstance(ended.exception, Conflict)
