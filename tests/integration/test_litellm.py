"""litellm as a client, with nothing but `api_base` and `api_key`, on a running service with real models."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CALLS = Path(__file__).parent / "litellm_calls.py"


@pytest.fixture(scope="module")
def answers(service_environment: dict[str, str]) -> dict[str, Any]:
    """By the names of the functions in litellm_calls.py."""
    ended = subprocess.run(
        [sys.executable, CALLS],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **service_environment},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return said


def test_a_chat_and_its_stream_say_the_same(answers: dict[str, Any]) -> None:
    chat = answers["chat"]
    assert "Paris" in chat["whole"][0]
    assert chat["streamed"] == chat["whole"]
    assert chat["chunks"] > 3


def test_a_tool_is_called_whole_and_streamed(answers: dict[str, Any]) -> None:
    whole, streamed = answers["tools"]
    assert whole == streamed
    assert (whole["reason"], whole["name"]) == ("tool_calls", "look_up")
    assert whole["arguments"]["city"] in {"Rome", "Paris"}


def test_completions_and_embeddings(answers: dict[str, Any]) -> None:
    assert "Paris" in answers["completion"]
    assert answers["embeddings"] == [384, 384]


def test_responses_are_made_streamed_and_found_again(answers: dict[str, Any]) -> None:
    responses = answers["responses"]
    assert "".join(responses["deltas"]) == responses["whole"] == responses["found"]
    assert len(responses["deltas"]) > 3
    assert responses["deleted"]


def test_a_batch_from_file_to_file(answers: dict[str, Any]) -> None:
    assert answers["batch"] == {"file": "rows.jsonl", "row": ["first", 200], "deleted": True}


def test_a_fine_tuning_job_is_made_listed_and_cancelled(answers: dict[str, Any]) -> None:
    assert answers["fine_tuning"] == {"model": "smollm2-135m-instruct", "listed": True, "status": "cancelled"}


def test_an_error_is_the_librarys_own(answers: dict[str, Any]) -> None:
    """So that its fallbacks, such as another model for a prompt that is too long, know what has happened."""
    assert answers["errors"] == {
        "model": "NotFoundError",
        "limit": "BadRequestError",
        "key": "AuthenticationError",
        "prompt": "ContextWindowExceededError",
    }
