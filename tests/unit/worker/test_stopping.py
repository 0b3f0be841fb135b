"""How a running attempt is kept alive, and how it learns that it must stop, and why."""

import threading
import time

import pytest

from tandem.errors import Cancelled, Draining, Superseded
from tandem.job import JobState
from tests.unit.worker.worker_bench import (
    LANE,
    LEASE_SECONDS,
    SOON,
    WORKER,
    Bench,
    nobody_watches,
    wait_until_stopped,
)
from worker.attempt import Attempt
from worker.executor import JobExecutor
from worker.lease import LeaseKeeper
from worker.monitor import JobMonitor


def test_a_cancelled_job_stops_its_runner(bench: Bench) -> None:
    started = threading.Event()

    def run(attempt: Attempt) -> None:
        started.set()
        wait_until_stopped(attempt)

    job_id = bench.submit()
    thread = threading.Thread(target=bench.executor(run).run, args=(LANE,))
    thread.start()
    assert started.wait(SOON)
    bench.jobs.cancel(job_id)
    thread.join(SOON)
    assert bench.jobs.get(job_id).state is JobState.CANCELLED


def test_a_long_job_keeps_its_lease(bench: Bench) -> None:
    def run(attempt: Attempt) -> str:
        threading.Event().wait(LEASE_SECONDS * 2.5)
        bench.jobs.reap()
        attempt.check()
        return "kept"

    job_id = bench.submit()
    bench.executor(run).run(LANE)
    assert bench.jobs.get(job_id).result == "kept"


def test_an_attempt_that_was_taken_back_is_told_and_writes_nothing(bench: Bench) -> None:
    """A frozen and thawed worker: its runner is stopped, and what it would answer is refused."""
    reasons: list[type] = []

    def run(attempt: Attempt) -> str:
        # As if this worker had been frozen while another took the job.
        bench.jobs.release(attempt.job.id, attempt.fence)
        bench.jobs.claim(LANE, "another")
        try:
            wait_until_stopped(attempt)
        except Superseded as reason:
            reasons.append(type(reason))
        return "the zombie's"

    job_id = bench.submit()
    bench.executor(run).run(LANE)
    job = bench.jobs.get(job_id)
    assert reasons == [Superseded]
    assert (job.state, job.worker, job.result) == (JobState.RUNNING, "another", None)


def test_a_draining_worker_releases_what_runs_and_claims_no_more(bench: Bench) -> None:
    started = threading.Event()

    def run(attempt: Attempt) -> None:
        started.set()
        wait_until_stopped(attempt)

    job_id, later = bench.submit(), bench.submit()
    executor = bench.executor(run)
    thread = threading.Thread(target=executor.run, args=(LANE,))
    thread.start()
    assert started.wait(SOON)
    executor.close()
    assert not bench.leases.wait_idle(0.05)
    bench.leases.stop_all(Draining())
    assert bench.leases.wait_idle(SOON)
    thread.join(SOON)
    released = bench.jobs.get(job_id)
    assert (released.state, released.crashes) == (JobState.QUEUED, 0)
    executor.run(LANE)
    assert bench.jobs.get(later).state is JobState.QUEUED


def test_an_expired_job_stops_its_runner_at_the_deadline(bench: Bench) -> None:
    """The deadline is known to the worker: it needs no renewal to learn of it."""

    def run(attempt: Attempt) -> None:
        wait_until_stopped(attempt)

    job_id = bench.submit(deadline_seconds=0.3)
    started = time.monotonic()
    bench.executor(run).run(LANE)
    assert time.monotonic() - started >= 0.25
    assert bench.jobs.get(job_id).state is JobState.EXPIRED


def test_a_paused_job_is_given_back_and_waits(bench: Bench) -> None:
    started = threading.Event()

    def run(attempt: Attempt) -> str:
        if attempt.fence == 2:
            return "done"
        started.set()
        wait_until_stopped(attempt)
        return "never"

    job_id = bench.submit()
    executor = bench.executor(run)
    thread = threading.Thread(target=executor.run, args=(LANE,))
    thread.start()
    assert started.wait(SOON)
    bench.jobs.pause(job_id)
    thread.join(SOON)
    executor.run(LANE)
    held = bench.jobs.get(job_id)
    assert (held.state, held.paused, held.attempt, held.crashes) == (JobState.QUEUED, True, 1, 0)
    bench.jobs.resume(job_id)
    executor.run(LANE)
    assert bench.jobs.get(job_id).result == "done"


def test_a_cancellation_is_learned_of_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a nudge: the next renewal would come long after the test has given up."""
    monkeypatch.setattr("worker.lease.RENEW_SECONDS", 10 * SOON)
    leases = LeaseKeeper(bench.jobs, 100 * SOON, "patient")
    leases.start()
    monitor = JobMonitor(nobody_watches)
    started = threading.Event()

    def run(attempt: Attempt) -> None:
        started.set()
        wait_until_stopped(attempt)

    executor = JobExecutor(bench.jobs, leases, bench.reporter, monitor, {"inference": run}, "patient")
    job_id = bench.submit()
    thread = threading.Thread(target=executor.run, args=(LANE,))
    thread.start()
    assert started.wait(SOON)
    bench.jobs.cancel(job_id)
    thread.join(SOON)
    leases.stop()
    assert bench.jobs.get(job_id).state is JobState.CANCELLED


def test_a_claim_whose_answer_was_lost_is_given_back_uncharged(bench: Bench) -> None:
    """Regression. Symptom: a connection that broke between a claim and its answer cost the job a crash. Cause: nobody
    renewed what nobody knew of. Fix: after such a claim the worker disowns what it does not hold."""
    lost, held = bench.submit(), bench.submit()
    assert bench.jobs.claim(LANE, WORKER) is not None
    assert bench.jobs.claim(LANE, WORKER) is not None
    threading.Event().wait(0.05)
    assert bench.jobs.disown(WORKER, [held], grace_seconds=60.0) == 0, "its answer may be on the way"
    assert bench.jobs.disown("another", [], grace_seconds=0.01) == 0
    assert bench.jobs.disown(WORKER, [held], grace_seconds=0.01) == 1
    given_back = bench.jobs.get(lost)
    assert (given_back.state, given_back.crashes) == (JobState.QUEUED, 0)
    assert bench.jobs.get(held).state is JobState.RUNNING


def test_a_drain_waits_for_a_claim_that_is_on_its_way(bench: Bench) -> None:
    """Regression. Symptom: a drained worker could exit with a job that it had just been granted, which cost the job a
    crash. Cause: between the claim and its lease nothing told the drain to wait. Fix: claiming counts as running."""
    with bench.leases.claiming():
        assert not bench.leases.wait_idle(0.05)
    assert bench.leases.wait_idle(0.05)


def test_a_refused_claim_leaves_the_worker_idle(bench: Bench) -> None:
    assert not bench.executor(lambda _: 1).run("a lane without jobs")
    assert bench.leases.wait_idle(0.05)


def test_stop_reasons_the_first_one_stands() -> None:
    class _Claim:
        job = None
        fence = 1
        seconds_left = None

    attempt = Attempt(_Claim(), None, lambda _: None)  # type: ignore[arg-type]  # only the stop is looked at
    attempt.stop(Cancelled())
    attempt.stop(Draining())
    with pytest.raises(Cancelled):
        attempt.check()
    called = threading.Event()
    attempt.on_stop(called.set)
    assert called.is_set(), "a callback that comes late is called at once"
