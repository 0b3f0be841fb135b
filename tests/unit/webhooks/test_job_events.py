"""Which events the end of a job is."""

from typing import Any

import pytest

from tandem.job import JobState
from tandem.webhooks.job_events import events_of
from tests.unit.webhooks.jobs import ended_job

END_STATES = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


def response(*, background: bool) -> dict[str, Any]:
    """The spec of a job that was asked for as a response."""
    spec = dict(ended_job().spec)
    return {**spec, "response": {"request": {"background": background}}}


@pytest.mark.parametrize("state", END_STATES)
def test_every_end_is_an_event_of_ours_with_the_job_in_it(state: JobState) -> None:
    (event,) = events_of(ended_job("job_1", state=state)).items()
    name, data = event
    assert name == f"job.{state}"
    assert (data["id"], data["state"], data["metadata"]) == ("job_1", state, {"order": "42"})
    assert "result" not in data


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (JobState.SUCCEEDED, "succeeded"),
        (JobState.FAILED, "failed"),
        (JobState.CANCELLED, "cancelled"),
        (JobState.EXPIRED, "failed"),
    ],
)
def test_the_end_of_a_training_is_openais_event_too(state: JobState, told: str) -> None:
    """One that missed its deadline has failed: OpenAI's trainings have none."""
    events = events_of(ended_job("job_1", kind="finetune", state=state))
    assert events.keys() == {f"job.{state}", f"fine_tuning.job.{told}"}
    assert {"id": "job_1"} in events.values()


@pytest.mark.parametrize(
    ("state", "finish_reason", "told"),
    [
        (JobState.SUCCEEDED, "stop", "response.completed"),
        (JobState.SUCCEEDED, "length", "response.incomplete"),
        (JobState.FAILED, None, "response.failed"),
        (JobState.CANCELLED, None, "response.cancelled"),
        (JobState.EXPIRED, None, "response.failed"),
    ],
)
def test_the_end_of_a_response_in_the_background_is_its_event(
    state: JobState, finish_reason: str | None, told: Any
) -> None:
    result = None if finish_reason is None else {"finish_reason": finish_reason}
    events = events_of(ended_job("job_1", spec=response(background=True), state=state, result=result))
    assert events[told] == {"id": "resp_1"}


def test_a_response_that_was_waited_for_is_none() -> None:
    job = ended_job(spec=response(background=False), result={"finish_reason": "stop"})
    assert events_of(job).keys() == {"job.succeeded"}


def test_a_shard_of_a_batch_is_none_of_its_owners_jobs() -> None:
    assert events_of(ended_job(kind="batch")) == {}
