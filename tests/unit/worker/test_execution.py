"""What a worker does around a runner: claim, lease, events, end. Over a real Valkey server; the runners are fakes."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tandem.artifacts import ArtifactStore
from tandem.errors import Cancelled, Draining, InvalidRequest, Superseded
from tandem.job import JobState
from tandem.job_store import JobStore
from tandem.settings import Settings
from tests.valkey_server import ValkeyServer
from worker.attempt import Attempt
from worker.executor import JobExecutor
from worker.lease import LeaseKeeper
from worker.reporter import Reporter

LEASE_SECONDS = 0.6
SOON = 5.0
"""Seconds that an event may take on a busy machine."""


@dataclass
class Bench:
    jobs: JobStore
    leases: LeaseKeeper
    reporter: Reporter

    def submit(self) -> str:
        return self.jobs.submit(kind="inference", model="m", lane="l", owner="o", spec={}).job.id

    def executor(self, runner: Callable[[Attempt], Any]) -> JobExecutor:
        return JobExecutor(self.jobs, self.leases, self.reporter, {"inference": runner}, "a-worker")

    def events(self, job_id: str, kind: str) -> list[str]:
        stream = self.jobs.redis.xrange(f"tandem:events:{job_id}")
        return [fields["data"] for _, fields in stream if fields["type"] == kind]


def _bench(url: str, folder: Path) -> Iterator[Bench]:
    settings = Settings(redis_url=url, artifacts_url=f"file://{folder}", lease_seconds=LEASE_SECONDS)
    jobs = JobStore(settings, ArtifactStore(settings.artifacts_url))
    bench = Bench(jobs, LeaseKeeper(jobs, LEASE_SECONDS), Reporter(jobs))
    bench.leases.start()
    bench.reporter.start()
    yield bench
    bench.leases.stop()
    bench.reporter.stop()
    jobs.redis.close()


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
    ended = bench.executor(lambda attempt: {"fence": attempt.fence}).run(job_id)
    assert ended is not None
    assert ended.state is JobState.SUCCEEDED
    assert bench.jobs.get(job_id).result == {"fence": 1}
    assert bench.leases.running() == []


def test_a_runners_error_becomes_the_jobs_failure_and_the_worker_lives_on(bench: Bench) -> None:
    def refuse(attempt: Attempt) -> None:
        raise InvalidRequest("`inputs` is empty", param="inputs")

    job_id = bench.submit()
    bench.executor(refuse).run(job_id)
    failed = bench.jobs.get(job_id)
    assert failed.state is JobState.FAILED
    assert failed.failure is not None
    assert (failed.failure.code, failed.failure.param) == ("invalid_request", "inputs")
    assert bench.executor(lambda _: 1).run(bench.submit()) is not None


def test_an_unforeseen_error_is_internal_and_says_its_type(bench: Bench) -> None:
    job_id = bench.submit()
    bench.executor(lambda _: 1 / 0).run(job_id)
    failure = bench.jobs.get(job_id).failure
    assert failure is not None
    assert (failure.code, failure.message) == ("internal_error", "ZeroDivisionError: division by zero")


def test_a_second_ticket_for_the_same_job_does_nothing(bench: Bench) -> None:
    job_id = bench.submit()
    executor = bench.executor(lambda _: 1)
    assert executor.run(job_id) is not None
    assert executor.run(job_id) is None
    assert bench.jobs.get(job_id).attempt == 1


def test_a_cancelled_job_stops_its_runner(bench: Bench) -> None:
    started = threading.Event()

    def run(attempt: Attempt) -> None:
        started.set()
        wait_until_stopped(attempt)

    job_id = bench.submit()
    thread = threading.Thread(target=bench.executor(run).run, args=(job_id,))
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
    bench.executor(run).run(job_id)
    assert bench.jobs.get(job_id).result == "kept"


def test_an_attempt_that_was_taken_back_is_told_and_writes_nothing(bench: Bench) -> None:
    """A frozen and thawed worker: its runner is stopped, and what it would answer is refused."""
    reasons: list[type] = []

    def run(attempt: Attempt) -> str:
        # As if this worker had been frozen while another took the job.
        bench.jobs.release(attempt.job.id, attempt.fence)
        bench.jobs.claim(attempt.job.id, "another")
        try:
            wait_until_stopped(attempt)
        except Superseded as reason:
            reasons.append(type(reason))
        return "the zombie's"

    job_id = bench.submit()
    assert bench.executor(run).run(job_id) is None
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
    thread = threading.Thread(target=executor.run, args=(job_id,))
    thread.start()
    assert started.wait(SOON)
    executor.close()
    assert not bench.leases.wait_idle(0.05)
    bench.leases.stop_all(Draining())
    assert bench.leases.wait_idle(SOON)
    thread.join(SOON)
    released = bench.jobs.get(job_id)
    assert (released.state, released.crashes) == (JobState.QUEUED, 0)
    assert executor.run(later) is None
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
    bench.executor(run).run(job_id)
    kinds = [fields["type"] for _, fields in bench.jobs.redis.xrange(f"tandem:events:{job_id}")]
    assert kinds[:2] == ["state", "state"]
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
    thread = threading.Thread(target=bench.executor(run).run, args=(job_id,))
    thread.start()
    assert killed.wait(SOON)
    own_valkey.restart()
    thread.join(4 * SOON)
    assert not thread.is_alive()
    job = bench.jobs.get(job_id)
    assert (job.state, job.result, job.attempt) == (JobState.SUCCEEDED, "written late", 1)
    assert list(bench.events(job_id, "progress")) == ['{"done":1}', '{"done":2}']
    assert next(benches, None) is None


def test_stop_reasons_the_first_one_stands() -> None:
    class _Claim:
        job = None
        fence = 1

    attempt = Attempt(_Claim(), lambda _: None)  # type: ignore[arg-type]  # only the stop is looked at
    attempt.stop(Cancelled())
    attempt.stop(Draining())
    with pytest.raises(Cancelled):
        attempt.check()
    called = threading.Event()
    attempt.on_stop(called.set)
    assert called.is_set(), "a callback that comes late is called at once"
