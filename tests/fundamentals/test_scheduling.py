"""Which job goes next, and when: priorities, fair shares, delays, deadlines, pauses, and who must run alone."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tandem.artifacts import ArtifactStore
from tandem.errors import Conflict, OutOfMemory, QueueFull
from tandem.job import Failure, Job, JobKind, JobState
from tandem.job_store import Claim, JobStore, Share
from tandem.settings import Settings
from tandem.specs import Scheduling
from tandem.tickets import lane

LANE = lane("inference", "a-model")
LEASE_SECONDS = 0.2

Open = Callable[..., JobStore]


@pytest.fixture
def open_store(valkey_url: str, tmp_path: object) -> Iterator[Open]:
    """A store with settings of the test's own."""
    opened: list[JobStore] = []

    def open_it(**settings: Any) -> JobStore:
        chosen = Settings(
            redis_url=valkey_url,
            artifacts_url=f"file://{tmp_path}",
            **{"lease_seconds": LEASE_SECONDS, **settings},
        )
        opened.append(JobStore(chosen, ArtifactStore(chosen.artifacts_url)))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


@pytest.fixture
def jobs(open_store: Open) -> JobStore:
    return open_store()


def submit(
    jobs: JobStore, *, owner: str = "me", share: Share | None = None, kind: JobKind = "inference", **scheduling: Any
) -> Job:
    return jobs.submit(
        kind=kind,
        model="a-model",
        lane=LANE,
        owner=owner,
        spec={"task": "text-generation"},
        scheduling=Scheduling(**scheduling),
        share=share,
    ).job


def claim(jobs: JobStore, worker: str = "worker") -> Claim:
    granted = jobs.claim(LANE, worker)
    assert granted is not None
    return granted


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def lose(jobs: JobStore) -> None:
    """Every running attempt's worker falls silent."""
    wait(LEASE_SECONDS * 1.5)
    jobs.reap()


def test_jobs_of_one_priority_go_in_the_order_of_submission(jobs: JobStore) -> None:
    submitted = [submit(jobs).id for _ in range(5)]
    assert [claim(jobs).job.id for _ in range(5)] == submitted


def test_the_more_urgent_job_goes_first(jobs: JobStore) -> None:
    """Four steps; the ticket that a worker took is of no account, since the claim decides."""
    for priority in ("low", "normal", "urgent", "high"):
        submit(jobs, priority=priority)
    assert [claim(jobs).job.priority for _ in range(4)] == ["urgent", "high", "normal", "low"]


def test_nothing_starves(open_store: Open) -> None:
    """Whoever has waited longer than the ageing time gets one turn of eight, however many urgent jobs there are."""
    jobs = open_store(ageing_seconds=0.2)
    old = submit(jobs, priority="low")
    wait(0.25)
    for _ in range(20):
        submit(jobs, priority="urgent")
    first_eight = [claim(jobs).job for _ in range(8)]
    assert [job.id for job in first_eight].count(old.id) == 1
    assert [job.priority for job in first_eight].count("urgent") == 7


def test_owners_of_one_priority_take_turns(jobs: JobStore) -> None:
    """One producer's thousand jobs do not hold up another's ten."""
    for _ in range(50):
        submit(jobs, owner="busy")
    for _ in range(5):
        submit(jobs, owner="modest")
    first_ten = [claim(jobs).job.owner for _ in range(10)]
    assert first_ten.count("modest") == 5


def test_a_heavier_key_gets_more_turns(jobs: JobStore) -> None:
    for _ in range(30):
        submit(jobs, owner="heavy", share=Share(weight=3.0))
        submit(jobs, owner="light", share=Share(weight=1.0))
    owners = [claim(jobs).job.owner for _ in range(20)]
    assert owners.count("heavy") == 15


def test_idle_owners_save_nothing_up(jobs: JobStore) -> None:
    """An owner who comes late shares from then on; it does not catch up on what it never asked for."""
    for _ in range(40):
        submit(jobs, owner="early")
    for _ in range(20):
        claim(jobs)
    for _ in range(20):
        submit(jobs, owner="late")
    assert [claim(jobs).job.owner for _ in range(10)].count("late") == 5


def test_a_delayed_job_waits_for_its_time(jobs: JobStore) -> None:
    later = submit(jobs, delay_seconds=60)
    assert later.not_before is not None
    assert jobs.claim(LANE, "worker") is None
    assert jobs.wake() == (0, 0)
    soon = submit(jobs, delay_seconds=0.1)
    wait(0.15)
    assert jobs.wake() == (1, 0)
    assert claim(jobs).job.id == soon.id


def test_a_queued_job_expires_at_its_deadline(jobs: JobStore) -> None:
    """The sweep ends it; a claim that comes first ends it as well, and takes the next."""
    swept = submit(jobs, deadline_seconds=0.1)
    wait(0.15)
    assert jobs.wake() == (0, 1)
    claimed = submit(jobs, deadline_seconds=0.1)
    in_time = submit(jobs)
    wait(0.15)
    assert claim(jobs).job.id == in_time.id
    assert [jobs.get(job.id).state for job in (swept, claimed)] == [JobState.EXPIRED] * 2


def test_a_running_job_is_told_of_its_deadline(jobs: JobStore) -> None:
    job = submit(jobs, deadline_seconds=1.0)
    granted = claim(jobs)
    assert granted.seconds_left is not None
    assert 0 < granted.seconds_left <= 1.0
    wait(1.1)
    assert jobs.renew("worker", {job.id: 1}) == {job.id: "expired"}
    jobs.finish(job.id, 1, JobState.EXPIRED)
    assert jobs.get(job.id).state is JobState.EXPIRED


def test_a_paused_job_waits_to_be_resumed(jobs: JobStore) -> None:
    job = submit(jobs)
    assert jobs.pause(job.id).paused
    assert jobs.claim(LANE, "worker") is None
    assert not jobs.resume(job.id).paused
    assert claim(jobs).job.id == job.id


def test_a_running_job_is_given_back_to_be_paused(jobs: JobStore) -> None:
    job = submit(jobs)
    claim(jobs)
    jobs.pause(job.id)
    assert jobs.renew("worker", {job.id: 1}) == {job.id: "paused"}
    jobs.release(job.id, 1)
    assert jobs.claim(LANE, "worker") is None
    jobs.resume(job.id)
    assert claim(jobs).fence == 2


@pytest.mark.parametrize("what", [LANE, "*"])
def test_a_paused_lane_queues_and_hands_out_nothing(jobs: JobStore, what: str) -> None:
    """One lane, or the whole service for maintenance: running jobs go on, new ones are taken in."""
    running = submit(jobs)
    claim(jobs)
    jobs.pause_lane(what)
    queued = submit(jobs)
    assert jobs.claim(LANE, "worker") is None
    jobs.finish(running.id, 1, JobState.SUCCEEDED, result=1)
    jobs.resume_lane(what)
    assert claim(jobs).job.id == queued.id


def test_a_job_that_failed_for_a_passing_reason_is_tried_again(jobs: JobStore) -> None:
    job = submit(jobs)
    claim(jobs)
    jobs.retry(job.id, 1, Failure.of(OutOfMemory()), 0.5)
    assert jobs.claim(LANE, "worker") is None
    wait(0.6)
    jobs.wake()
    again = claim(jobs)
    assert (again.fence, again.job.retries, again.job.crashes) == (2, 1, 0)


def test_a_dead_letter_is_requeued_as_a_new_job(jobs: JobStore) -> None:
    """Its own end stands: a terminal state is final. Asked twice, there is still one new job."""
    dead = submit(jobs, priority="high")
    claim(jobs)
    jobs.finish(dead.id, 1, JobState.FAILED, failure=Failure.of(OutOfMemory()), is_dead=True)
    assert [job.id for job in jobs.dead_letters()] == [dead.id]
    requeued = jobs.requeue_dead(dead.id)
    assert jobs.requeue_dead(dead.id).job.id == requeued.job.id
    assert (requeued.job.requeued_from, requeued.job.spec, requeued.job.priority) == (dead.id, dead.spec, "high")
    assert jobs.get(dead.id).state is JobState.FAILED
    assert list(jobs.dead_letters()) == []
    with pytest.raises(Conflict, match="no dead letter"):
        jobs.requeue_dead(requeued.job.id)


def test_jobs_that_crashed_together_run_alone_next(jobs: JobStore) -> None:
    """One of them may have killed the worker, and no other shall die with it again."""
    together = {submit(jobs).id for _ in range(3)}
    for _ in together:
        claim(jobs, "first")
    lose(jobs)
    assert claim(jobs, "second").job.id in together
    submit(jobs)
    assert jobs.claim(LANE, "second") is None, "it runs a suspect, and nothing beside it"
    assert jobs.claim(LANE, "third") is not None


def test_the_killer_dies_and_the_innocent_live(jobs: JobStore) -> None:
    """The poisonous job is lost with each of its workers; those that it took along succeed at their second try."""
    poison, *innocent = [submit(jobs).id for _ in range(4)]
    for _ in range(4):
        claim(jobs, "worker-0")
    lose(jobs)
    for number in range(1, 20):
        granted = jobs.claim(LANE, f"worker-{number}")
        if granted is None:
            break
        if granted.job.id == poison:
            lose(jobs)
        else:
            jobs.finish(granted.job.id, granted.fence, JobState.SUCCEEDED)
    ends = {job_id: jobs.get(job_id) for job_id in (poison, *innocent)}
    assert (ends[poison].state, ends[poison].dead, ends[poison].crashes) == (JobState.FAILED, True, 3)
    assert [(ends[job_id].state, ends[job_id].attempt) for job_id in innocent] == [(JobState.SUCCEEDED, 2)] * 3


def test_a_shard_that_says_what_it_runs_outlives_its_losses(open_store: Open) -> None:
    """Each loss after a checkpoint tells more of the row that kills; one without counts against the shard as ever."""
    jobs = open_store(crashes_allowed=1)
    shard = submit(jobs, kind="batch").id
    for number in range(2):
        granted = claim(jobs, f"worker-{number}")
        jobs.save_checkpoint(shard, granted.fence, {"files": {}})
        lose(jobs)
        assert jobs.get(shard).state is JobState.QUEUED
    claim(jobs, "worker-2")
    lose(jobs)
    assert (jobs.get(shard).state, jobs.get(shard).crashes) == (JobState.FAILED, 3)


def test_a_busy_worker_makes_room_for_a_suspect(jobs: JobStore, open_store: Open) -> None:
    """Where no worker is idle, one takes nothing new until it is."""
    for _ in range(2):
        submit(jobs)
        claim(jobs, "lost")
    busy = submit(jobs)
    claim(jobs, "only")
    open_store(lease_seconds=60.0).renew("only", {busy.id: 1})
    lose(jobs)
    submit(jobs)
    assert jobs.claim(LANE, "only") is None, "two suspects wait to run alone"
    jobs.finish(busy.id, 1, JobState.SUCCEEDED)
    assert claim(jobs, "only").job.crashes == 1


def test_a_full_queue_says_when_to_come_back(open_store: Open) -> None:
    """From how many are queued and how many end in a second; one key's limit leaves room for the others."""
    jobs = open_store(queue_limit=4)
    for _ in range(2):
        submit(jobs, owner="small", share=Share(max_queued=2))
    with pytest.raises(QueueFull, match="this API key has 2 queued jobs") as refused:
        submit(jobs, owner="small", share=Share(max_queued=2))
    assert refused.value.retry_after == 30.0, "nothing has ended yet"
    for _ in range(2):
        submit(jobs, owner="other")
    for _ in range(3):
        granted = claim(jobs)
        jobs.finish(granted.job.id, granted.fence, JobState.SUCCEEDED)
    for _ in range(3):
        submit(jobs, owner="other")
    with pytest.raises(QueueFull, match="the service has 4 queued jobs") as full:
        submit(jobs, owner="other")
    # Three ended in the last minute: 0.05 a second, and a tenth of four jobs is to drain first.
    assert full.value.retry_after == pytest.approx(8, rel=0.05)


def test_finishing_works_on_a_full_server(jobs: JobStore) -> None:
    """What was acknowledged can end; only new jobs are refused."""
    job = submit(jobs)
    claim(jobs)
    jobs.redis.config_set("maxmemory", int(jobs.redis.info("memory")["used_memory"] * 1.1))
    try:
        wait(1.1)
        with pytest.raises(QueueFull, match="new jobs are refused"):
            submit(jobs)
        assert jobs.renew("worker", {job.id: 1}) == {}
        jobs.report(job.id, 1, [("progress", {"done": 1})])
        jobs.finish(job.id, 1, JobState.SUCCEEDED, result="kept")
    finally:
        jobs.redis.config_set("maxmemory", 0)
    assert jobs.get(job.id).result == "kept"


def test_a_claim_costs_no_list_of_all_that_wait(jobs: JobStore) -> None:
    """The records of queued jobs stay small: well under 4 KB with a prompt of 1 KB."""
    before = jobs.redis.info("memory")["used_memory"]
    spec = {"task": "text-generation", "inputs": "x" * 1000}
    for _ in range(500):
        jobs.submit(kind="inference", model="a-model", lane=LANE, owner="me", spec=spec)
    assert (jobs.redis.info("memory")["used_memory"] - before) / 500 < 4096
