"""Several fine-tuning jobs on one worker: as many at once as TANDEM_TRAININGS says, the others when one has ended."""

from collections.abc import Iterator

import pytest

from tandem import JobHandle, Tandem
from tandem.settings import WorkerSettings

BASE = "tiny-llama"
ROWS = [{"prompt": "the sea was ", "completion": "calm"}] * 8
ENDLESS = {"max_steps": 100_000, "batch_size": 2, "logging_steps": 1}
WAIT_SECONDS = 60.0


@pytest.fixture
def jobs(tasks_client: Tandem) -> Iterator[list[JobHandle]]:
    """One more than run at once; all are cancelled in the end."""
    count = WorkerSettings.model_fields["trainings"].default + 1
    submitted = [tasks_client.finetune(BASE, ROWS, hyperparameters=ENDLESS) for _ in range(count)]
    yield submitted
    for job in submitted:
        job.cancel()


def wait_for_metrics(job: JobHandle) -> dict[str, float]:
    """The figures of the first step that it reports."""
    for event in job.events(timeout=WAIT_SECONDS):
        if event.type == "metrics":
            return event.data
    raise AssertionError(f"{job.id} ended before its first step")


def test_they_train_side_by_side_and_the_next_one_follows(jobs: list[JobHandle]) -> None:
    *first, last = jobs
    for job in first:
        figures = wait_for_metrics(job)
        assert 0 < figures["device_share"] <= 1
        assert figures["quantum_ms"] >= 0
    assert [job.refresh().state for job in first] == ["running"] * len(first)
    assert last.refresh().state == "queued"
    first[0].cancel()
    wait_for_metrics(last)
    assert first[1].refresh().state == "running"
