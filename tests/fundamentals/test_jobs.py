"""What a job is: submitted once, claimed by one attempt at a time, ended once. Read from top to bottom.

Who goes first, and when, is told in test_scheduling.py.
"""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from tandem.artifacts import ArtifactStore
from tandem.errors import IdempotencyConflict, Superseded, UnknownJob
from tandem.job import Failure, Job, JobState
from tandem.job_store import INLINE_BYTES, JobStore
from tandem.settings import Settings
from tandem.tickets import lane

LANE = lane("inference", "a-model")
LEASE_SECONDS = 0.2


@pytest.fixture
def jobs(valkey_url: str, tmp_path: object) -> Iterator[JobStore]:
    with closing(open_store(valkey_url, tmp_path, LEASE_SECONDS)) as store:
        yield store


def open_store(url: str, folder: object, lease_seconds: float) -> JobStore:
    settings = Settings(redis_url=url, artifacts_url=f"file://{folder}", lease_seconds=lease_seconds)
    return JobStore(settings, ArtifactStore(settings.artifacts_url))


def submit(jobs: JobStore, prompt: str = "hello", **options: object) -> Job:
    spec = {"kind": "inference", "task": "text-generation", "model": "a-model", "inputs": prompt}
    return jobs.submit(kind="inference", model="a-model", lane=LANE, owner="me", spec=spec, **options).job  # type: ignore[arg-type]  # test factory


def let_the_lease_run_out() -> None:
    threading.Event().wait(LEASE_SECONDS * 1.5)


def test_a_submitted_job_is_queued_and_has_a_ticket_in_its_lane(jobs: JobStore) -> None:
    """Record and ticket come into being in one call."""
    job = submit(jobs)
    assert job.state is JobState.QUEUED
    assert [lane.ready for lane in jobs.lanes()] == [1]
    assert jobs.redis.llen(LANE) == 1


def test_a_claim_starts_an_attempt_with_a_fence(jobs: JobStore) -> None:
    """The first attempt's fence is 1; the job runs, and names its worker."""
    submit(jobs)
    claim = jobs.claim(LANE, "worker-a")
    assert claim is not None
    assert claim.fence == 1
    assert (claim.job.state, claim.job.worker) == (JobState.RUNNING, "worker-a")


def test_a_job_is_claimed_once_however_many_tickets_ring(jobs: JobStore) -> None:
    """Repeated, late and forged tickets are harmless."""
    submit(jobs)
    assert jobs.claim(LANE, "worker-a") is not None
    assert jobs.claim(LANE, "worker-b") is None
    assert jobs.claim("a lane that never had a job", "worker-b") is None


def test_many_workers_claiming_at_once_make_one_attempt(jobs: JobStore) -> None:
    """Claims are decided on the server, one after another."""
    submit(jobs)
    granted = []
    threads = [
        threading.Thread(target=lambda name=name: granted.append(jobs.claim(LANE, name)))
        for name in ("a", "b", "c", "d", "e", "f")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([claim for claim in granted if claim is not None]) == 1


def test_a_finished_job_has_one_immutable_result(jobs: JobStore) -> None:
    """Finishing again with the same fence is harmless and changes nothing: the first answer may have been lost."""
    job = submit(jobs)
    jobs.claim(LANE, "worker")
    jobs.finish(job.id, 1, JobState.SUCCEEDED, result={"generated_text": "hi"})
    jobs.finish(job.id, 1, JobState.SUCCEEDED, result={"generated_text": "something else"})
    ended = jobs.get(job.id)
    assert (ended.state, ended.result) == (JobState.SUCCEEDED, {"generated_text": "hi"})


def test_a_failed_job_keeps_type_code_and_message(jobs: JobStore) -> None:
    """A failure is stored as text, never as a pickled exception."""
    job = submit(jobs)
    jobs.claim(LANE, "worker")
    jobs.finish(job.id, 1, JobState.FAILED, failure=Failure.of(UnknownJob("gone", param="x")))
    failure = jobs.get(job.id).failure
    assert failure is not None
    assert failure.model_dump() == {
        "type": "UnknownJob", "code": "job_not_found", "message": "gone", "param": "x", "retryable": False,
    }  # fmt: skip


def test_a_worker_that_falls_silent_loses_the_job(jobs: JobStore) -> None:
    """Its lease runs out, the reaper queues the job again, and the next attempt has the next fence."""
    submit(jobs)
    jobs.claim(LANE, "silent")
    let_the_lease_run_out()
    assert jobs.reap() == (1, 0)
    claim = jobs.claim(LANE, "alive")
    assert claim is not None
    assert (claim.fence, claim.job.crashes) == (2, 1)


def test_a_renewed_lease_is_not_taken_back(jobs: JobStore, valkey_url: str, tmp_path: object) -> None:
    """From the renewal on the attempt has a whole lease again: here a longer one, so that no pause outlasts it."""
    job = submit(jobs)
    jobs.claim(LANE, "worker")
    with closing(open_store(valkey_url, tmp_path, lease_seconds=60.0)) as patient:
        assert patient.renew("worker", {job.id: 1}) == {}
    let_the_lease_run_out()
    assert jobs.reap() == (0, 0)
    assert jobs.get(job.id).attempt == 1


def test_a_zombie_can_change_nothing(jobs: JobStore) -> None:
    """An attempt that was taken back is told so by each of its writes; the later attempt's result stands."""
    job = submit(jobs)
    jobs.claim(LANE, "zombie")
    let_the_lease_run_out()
    jobs.reap()
    jobs.claim(LANE, "alive")
    assert jobs.renew("worker", {job.id: 1}) == {job.id: "lost"}
    for write in (
        lambda: jobs.report(job.id, 1, [("progress", {"done": 1})]),
        lambda: jobs.finish(job.id, 1, JobState.SUCCEEDED, result="the zombie's"),
        lambda: jobs.release(job.id, 1),
    ):
        with pytest.raises(Superseded):
            write()
    jobs.finish(job.id, 2, JobState.SUCCEEDED, result="the right one")
    with pytest.raises(Superseded):
        jobs.finish(job.id, 1, JobState.FAILED)
    assert jobs.get(job.id).result == "the right one"


def test_a_job_that_outlives_no_worker_fails_for_good(jobs: JobStore) -> None:
    """After three lost leases it may be the job that kills its workers."""
    job = submit(jobs)
    for _ in range(3):
        assert jobs.claim(LANE, "doomed") is not None
        let_the_lease_run_out()
        jobs.reap()
    ended = jobs.get(job.id)
    assert ended.state is JobState.FAILED
    assert ended.failure is not None
    assert ended.failure.code == "worker_lost"


def test_a_released_job_is_queued_again_uncharged(jobs: JobStore) -> None:
    """Draining a worker is no crash of the job."""
    job = submit(jobs)
    jobs.claim(LANE, "draining")
    jobs.release(job.id, 1)
    queued = jobs.get(job.id)
    assert (queued.state, queued.crashes) == (JobState.QUEUED, 0)
    assert jobs.claim(LANE, "next") is not None


def test_cancelling_a_queued_job_ends_it(jobs: JobStore) -> None:
    job = submit(jobs)
    assert jobs.cancel(job.id).state is JobState.CANCELLED
    assert jobs.claim(LANE, "worker") is None


def test_cancelling_a_running_job_asks_its_attempt_to_stop(jobs: JobStore) -> None:
    """Cancel is a flag: the attempt learns of it at its next renewal, and ends the job."""
    job = submit(jobs)
    jobs.claim(LANE, "worker")
    assert jobs.cancel(job.id).state is JobState.RUNNING
    assert jobs.renew("worker", {job.id: 1}) == {job.id: "cancelled"}
    jobs.finish(job.id, 1, JobState.CANCELLED)
    assert jobs.get(job.id).state is JobState.CANCELLED


def test_a_cancelled_job_whose_worker_died_is_cancelled_not_repeated(jobs: JobStore) -> None:
    job = submit(jobs)
    jobs.claim(LANE, "worker")
    jobs.cancel(job.id)
    let_the_lease_run_out()
    jobs.reap()
    assert jobs.get(job.id).state is JobState.CANCELLED


def test_cancelling_an_ended_job_changes_nothing(jobs: JobStore) -> None:
    job = submit(jobs)
    jobs.claim(LANE, "worker")
    jobs.finish(job.id, 1, JobState.SUCCEEDED, result=1)
    assert jobs.cancel(job.id).state is JobState.SUCCEEDED


def test_the_same_key_and_body_are_the_same_job(jobs: JobStore) -> None:
    first = submit(jobs, idempotency_key="once")
    assert submit(jobs, idempotency_key="once").id == first.id
    assert len(jobs.list()) == 1


def test_the_same_key_with_another_body_is_refused(jobs: JobStore) -> None:
    submit(jobs, idempotency_key="once")
    with pytest.raises(IdempotencyConflict):
        submit(jobs, "another prompt", idempotency_key="once")


def test_a_lost_ticket_is_rung_again(jobs: JobStore) -> None:
    """The tickets vanished between Redis and a worker that was killed: the lane has work, so it is rung again."""
    for number in range(3):
        submit(jobs, f"prompt {number}")
    jobs.redis.delete(LANE)
    assert jobs.ring_lost() == 3
    assert jobs.redis.llen(LANE) == 3
    assert jobs.ring_lost() == 0


def test_a_long_backlog_has_few_tickets(jobs: JobStore) -> None:
    """A ticket says that the lane has work; each claim adds the next one, so a backlog costs no list of tickets."""
    for number in range(100):
        submit(jobs, f"prompt {number}")
    assert jobs.redis.llen(LANE) == 64
    jobs.redis.rpop(LANE)
    jobs.claim(LANE, "worker")
    assert jobs.redis.llen(LANE) == 64


def test_large_prompts_and_results_live_in_the_artifact_store(jobs: JobStore) -> None:
    """What Redis keeps of a job stays small, whatever is asked and answered."""
    prompt, answer = "p" * INLINE_BYTES, "r" * INLINE_BYTES
    job = submit(jobs, prompt)
    jobs.claim(LANE, "worker")
    jobs.finish(job.id, 1, JobState.SUCCEEDED, result={"generated_text": answer})
    ended = jobs.get(job.id)
    assert (ended.spec["inputs"], ended.result["generated_text"]) == (prompt, answer)
    assert sum(jobs.redis.memory_usage(f"tandem:{part}:{job.id}") for part in ("job", "spec", "events")) < 4_000


def test_jobs_are_listed_newest_first_and_page_by_page(jobs: JobStore) -> None:
    ids = [submit(jobs, f"prompt {number}").id for number in range(5)]
    jobs.cancel(ids[2])
    first = jobs.list(limit=2)
    rest = jobs.list(limit=10, after=first[-1].sequence)
    assert [job.id for job in [*first, *rest]] == ids[::-1]
    assert [job.id for job in jobs.list(state=JobState.CANCELLED, kind="inference")] == [ids[2]]
    assert jobs.list(state=JobState.QUEUED, model="another") == []


def test_an_ended_job_is_forgotten_with_all_its_keys(valkey_url: str, tmp_path: object) -> None:
    """After its time to live nothing of it is left; what is still needed stays."""
    settings = Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}", result_seconds=0.01)
    jobs = JobStore(settings, ArtifactStore(settings.artifacts_url))
    ended, queued = submit(jobs, "ended"), submit(jobs, "queued")
    jobs.cancel(ended.id)
    threading.Event().wait(0.02)
    assert jobs.prune() == 1
    with pytest.raises(UnknownJob):
        jobs.get(ended.id)
    assert [key for key in jobs.redis.keys("*") if ended.id in key] == []
    assert [job.id for job in jobs.list()] == [queued.id]
    jobs.close()
