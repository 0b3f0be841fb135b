"""The transition table and the server's function library say the same."""

import itertools
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from tandem.artifacts import ArtifactStore
from tandem.errors import OutOfMemory, Superseded
from tandem.job import TRANSITIONS, Failure, JobState
from tandem.job_store import EndState, JobStore
from tandem.settings import Settings
from tandem.specs import Scheduling

DEADLINE_SECONDS = 0.2
LANE = "tandem.inference.m"
END_STATES: tuple[EndState, ...] = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


def _submitted(jobs: JobStore) -> str:
    return jobs.submit(
        kind="inference",
        model="m",
        lane=LANE,
        owner="o",
        spec={"inputs": "x"},
        scheduling=Scheduling(deadline_seconds=DEADLINE_SECONDS),
    ).job.id


def _bring_to(jobs: JobStore, state: JobState) -> str:
    job_id = _submitted(jobs)
    if state is JobState.QUEUED:
        return job_id
    if state is JobState.CANCELLED:
        jobs.cancel(job_id)
        return job_id
    claim = jobs.claim(LANE, "w")
    assert claim is not None
    assert claim.job.id == job_id
    if state in END_STATES:
        jobs.finish(job_id, 1, state)
    return job_id


def _calls(jobs: JobStore, job_id: str) -> list[Callable[[], object]]:
    return [
        lambda: jobs.claim(LANE, "w"),
        lambda: jobs.cancel(job_id),
        lambda: jobs.pause(job_id),
        lambda: jobs.resume(job_id),
        lambda: jobs.retry(job_id, 1, Failure.of(OutOfMemory()), 0.0),
        lambda: jobs.release(job_id, 1),
        *[lambda state=state: jobs.finish(job_id, 1, state) for state in END_STATES],
        lambda: jobs.renew("w", {job_id: 1}),
        jobs.reap,
        jobs.ring_lost,
        lambda: _let_the_deadline_pass(jobs),
    ]


def _let_the_deadline_pass(jobs: JobStore) -> None:
    threading.Event().wait(DEADLINE_SECONDS * 1.5)
    jobs.wake()
    jobs.reap()


@pytest.mark.parametrize("start", list(JobState))
def test_every_call_moves_a_job_along_the_table_or_not_at_all(
    valkey_url: str, tmp_path: object, start: JobState
) -> None:
    settings = Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}", lease_seconds=0.001)
    jobs = JobStore(settings, ArtifactStore(settings.artifacts_url))
    seen = set()
    for number in itertools.count():
        jobs.redis.flushdb()
        job_id = _bring_to(jobs, start)
        calls = _calls(jobs, job_id)
        if number >= len(calls):
            break
        # A refused call must leave the state as it was, which is what is looked at below.
        with suppress(Superseded):
            calls[number]()
        after = jobs.get(job_id).state
        if after is not start:
            seen.add(after)
    jobs.close()
    assert seen == TRANSITIONS[start]


def test_a_submission_that_was_sent_twice_is_one_new_job(
    valkey_url: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression. Symptom: after a broken connection a new job was answered as an old one. Cause: Redis'
    client sends a call again on a new connection, and that finds the job of the first. Fix: the id tells."""
    settings = Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}")
    jobs = JobStore(settings, ArtifactStore(settings.artifacts_url))
    monkeypatch.setattr("tandem.job_store._new_id", lambda: "job_000000000000000000000001")
    submitted = [
        jobs.submit(kind="inference", model="m", lane=LANE, owner="o", spec={}, idempotency_key="once")
        for _ in range(2)
    ]
    assert [one.created for one in submitted] == [True, True]
    assert len(jobs.list()) == 1
    jobs.close()
