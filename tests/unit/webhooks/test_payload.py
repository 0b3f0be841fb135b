"""What a webhook tells."""

import json
from typing import Any

import pytest

from tandem.job import Failure, JobState
from tandem.webhooks.payload import Payload, message_id
from tests.unit.webhooks.jobs import ended_job


def test_it_tells_how_the_job_ended_and_whose_it_was() -> None:
    assert json.loads(Payload.of(ended_job()).model_dump_json()) == {
        "type": "job.succeeded",
        "timestamp": "2027-01-15T08:00:12.345+00:00",
        "data": {
            "id": "job_1",
            "kind": "inference",
            "task": "text-generation",
            "model": "smollm2",
            "state": "succeeded",
            "attempt": 1,
            "created_at": 1_800_000_000.0,
            "finished_at": 1_800_000_012.345,
            "failure": None,
            "metadata": {"order": "42"},
        },
    }


def test_neither_prompt_nor_result_leave_the_service() -> None:
    text = Payload.of(ended_job()).model_dump_json()
    assert "the prompt" not in text
    assert "the answer" not in text


def test_a_failed_job_tells_why() -> None:
    failure = Failure(type="OutOfMemory", code="out_of_memory", message="no room", retryable=True)
    payload = Payload.of(ended_job(state=JobState.FAILED, failure=failure))
    assert payload.type == "job.failed"
    assert payload.data.failure == failure


@pytest.mark.parametrize("state", [state for state in JobState if state.is_terminal])
def test_every_terminal_state_has_its_message(state: JobState) -> None:
    assert Payload.of(ended_job(state=state)).type == f"job.{state}"


@pytest.mark.parametrize("changes", [{"state": JobState.RUNNING}, {"finished_at": None}])
def test_a_job_that_has_not_ended_has_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Payload.of(ended_job(**changes))


def test_the_message_of_a_job_has_one_id() -> None:
    assert message_id("job_1") == "msg_job_1"
