"""What a worker does around a runner: claim, lease, events, end. Over a real Valkey server; the runners are fakes."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tandem.artifacts import ArtifactStore
from tandem.errors import Cancelled, Draining, InvalidRequest, OutOfMemory, Superseded
from tandem.job import JobState
from tandem.job_store import JobStore
from tandem.settings import Settings
from tandem.specs import Scheduling
from tests.valkey_server import ValkeyServer
from worker.attempt import Attempt
from worker.executor import JobExecutor
from worker.lease import LeaseKeeper
from worker.monitor import JobMonitor
from worker.reporter import Reporter

LEASE_SECONDS = 0.6
LANE, WORKER = "a-lane", "a-worker"
SOON = 5.0
"""Seconds that an event may take on a busy machine."""


def nobody_watches(_event: str, **_fields: Any) -> None:
    """Monitors are another test's matter."""


@dataclass
class Bench:
    jobs: JobStore
    leases: LeaseKeeper
    reporter: Reporter

    def submit(self, **scheduling: Any) -> str:
        return self.jobs.submit(
            kind="inference",
            model="m",
            lane=LANE,
            owner="o",
            spec=Scheduling(**scheduling).model_dump(mode="json", exclude_defaults=True),
            scheduling=Scheduling(**scheduling),
        ).job.id

    def executor(self, runner: Callable[[Attempt], Any]) -> JobExecutor:
        monitor = JobMonitor(nobody_watches)
        return JobExecutor(self.jobs, self.leases, self.reporter, monitor, {"inference": runner}, WORKER)

    def events(self, job_id: str, kind: str) -> list[str]:
        stream = self.jobs.redis.xrange(f"tandem:events:{job_id}")
        return [fields["data"] for _, fields in stream if fields["type"] == kind]


def _bench(url: str, folder: Path) -> Iterator[Bench]:
    settings = Settings(redis_url=url, artifacts_url=f"file://{folder}", lease_seconds=LEASE_SECONDS)
    jobs = JobStore(settings, ArtifactStore(settings.artifacts_url))
    bench = Bench(jobs, LeaseKeeper(jobs, LEASE_SECONDS, WORKER), Reporter(jobs))
    bench.leases.start()
    bench.reporter.start()
    yield bench
    bench.leases.stop()
    bench.reporter.stop()
    jobs.close()


@pytest.fixture
def bench(valkey_url: str, tmp_path: Path) -> Iterator[Bench]:
    yield from _bench(valkey_url, tmp_path)


def wait_until_stopped(attempt: Attempt) -> None:
    stopped = threading.Event()
    attempt.on_stop(stopped.set)
    assert stopped.wait(SOON)
    attempt.check()


def test_a_runners_answer_becomes_the_jobs_result(bench: Bench) -> None:
    job_id = bench.submit()
    bench.executor(lambda attempt: {"fence": attempt.fence}).run(LANE)
    ended = bench.jobs.get(job_id)
    assert (ended.state, ended.result) == (JobState.SUCCEEDED, {"fence": 1})
    assert bench.leases.running() == []


def test_a_runners_error_becomes_the_jobs_failure_and_the_worker_lives_on(bench: Bench) -> None:
    def refuse(attempt: Attempt) -> None:
        raise InvalidRequest("`inputs` is empty", param="inputs")

    job_id = bench.submit()
    bench.executor(refuse).run(LANE)
    failed = bench.jobs.get(job_id)
    assert failed.state is JobState.FAILED
    assert failed.failure is not None
    assert (failed.failure.code, failed.failure.param) == ("invalid_request", "inputs")
    later = bench.submit()
    bench.executor(lambda _: 1).run(LANE)
    assert bench.jobs.get(later).state is JobState.SUCCEEDED


def test_an_unforeseen_error_is_internal_and_says_its_type(bench: Bench) -> None:
    job_id = bench.submit()
    bench.executor(lambda _: 1 / 0).run(LANE)
    failure = bench.jobs.get(job_id).failure
    assert failure is not None
    assert (failure.code, failure.message) == ("internal_error", "ZeroDivisionError: division by zero")


def test_a_ticket_too_many_does_nothing(bench: Bench) -> None:
    job_id = bench.submit()
    executor = bench.executor(lambda _: 1)
    executor.run(LANE)
    executor.run(LANE)
    assert bench.jobs.get(job_id).attempt == 1


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


def test_events_arrive_in_order_and_before_the_end(bench: Bench) -> None:
    """Pieces of text that wait together become one event; nothing is lost and nothing overtakes."""

    def run(attempt: Attempt) -> str:
        for number in range(50):
            attempt.report("tokens", {"text": f"{number} "})
        attempt.report("progress", {"done": 50})
        attempt.report("tokens", {"text": "end"})
        return "done"

    job_id = bench.submit()
    bench.executor(run).run(LANE)
    kinds = [fields["type"] for _, fields in bench.jobs.redis.xrange(f"tandem:events:{job_id}")]
    assert kinds[0] == "state"
    assert kinds[-3:] == ["progress", "tokens", "state"]
    texts = [data.split('"')[3] for data in bench.events(job_id, "tokens")]
    assert "".join(texts) == "".join(f"{number} " for number in range(50)) + "end"
    assert bench.jobs.get(job_id).progress == {"done": 50}


def test_redis_dying_while_a_job_runs_loses_neither_its_events_nor_its_result(
    own_valkey: ValkeyServer, tmp_path: Path
) -> None:
    """The runner never notices; what it reported and answered is written once the server is back."""
    benches = _bench(own_valkey.url, tmp_path)
    bench = next(benches)
    killed = threading.Event()

    def run(attempt: Attempt) -> str:
        attempt.report("progress", {"done": 1})
        bench.reporter.flush(attempt)
        own_valkey.kill()
        killed.set()
        attempt.report("progress", {"done": 2})
        return "written late"

    job_id = bench.submit()
    # What is to survive a kill must have reached the disk: `appendfsync everysec` is up to a second late.
    bench.jobs.redis.config_set("appendfsync", "always")
    thread = threading.Thread(target=bench.executor(run).run, args=(LANE,))
    thread.start()
    assert killed.wait(SOON)
    own_valkey.restart()
    thread.join(4 * SOON)
    assert not thread.is_alive()
    job = bench.jobs.get(job_id)
    assert (job.state, job.result, job.attempt) == (JobState.SUCCEEDED, "written late", 1)
    assert list(bench.events(job_id, "progress")) == ['{"done":1}', '{"done":2}']
    assert next(benches, None) is None


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


def test_a_passing_failure_is_retried_and_then_a_dead_letter(bench: Bench) -> None:
    """Only errors that can pass are repeated; when the tries are used up, the job is kept for somebody to look at."""

    def run(attempt: Attempt) -> None:
        raise OutOfMemory("the device is full")

    job_id = bench.submit(retry={"max_retries": 2, "backoff_seconds": 0.02})
    executor = bench.executor(run)
    for retries in (1, 2):
        executor.run(LANE)
        waiting = bench.jobs.get(job_id)
        assert (waiting.state, waiting.retries) == (JobState.QUEUED, retries)
        threading.Event().wait(0.05)
        assert bench.jobs.wake() == (1, 0)
    executor.run(LANE)
    dead = bench.jobs.get(job_id)
    assert (dead.state, dead.dead, dead.attempt) == (JobState.FAILED, True, 3)
    assert [job.id for job in bench.jobs.dead_letters()] == [job_id]
    assert len(bench.events(job_id, "retry")) == 2


def test_a_cancellation_is_learned_of_at_once(bench: Bench) -> None:
    """By a nudge: the next renewal would come a third of a lease later."""
    leases = LeaseKeeper(bench.jobs, 60.0, "patient")
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
    asked = time.monotonic()
    bench.jobs.cancel(job_id)
    thread.join(SOON)
    took = time.monotonic() - asked
    leases.stop()
    assert bench.jobs.get(job_id).state is JobState.CANCELLED
    assert took < 1.0, "a renewal alone would take up to two seconds"


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
