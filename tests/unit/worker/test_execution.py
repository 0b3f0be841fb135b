"""What a worker does around a runner: claim, events, retries, end. A real Valkey server; the runners are fakes."""

import threading
from pathlib import Path

import pytest

from tandem.errors import AttemptStopped, Cancelled, InvalidRequest, OutOfMemory, QueueUnavailable
from tandem.job import JobState
from tests.unit.worker.worker_bench import (
    LANE,
    SOON,
    Bench,
    bench_over,
)
from tests.valkey_server import ValkeyServer
from worker.attempt import Attempt


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


@pytest.mark.parametrize(("error", "state"), [(InvalidRequest, "failed"), (Cancelled, "cancelled")])
def test_a_job_that_ends_without_success_keeps_what_its_runner_leaves(
    bench: Bench, error: type[InvalidRequest | AttemptStopped], state: str
) -> None:
    def run(attempt: Attempt) -> None:
        attempt.leave(lambda: {"steps": 3})
        raise error

    job_id = bench.submit()
    bench.executor(run).run(LANE)
    ended = bench.jobs.get(job_id)
    assert (ended.state, ended.result) == (state, {"steps": 3})


def test_what_cannot_be_left_holds_up_no_end(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def fail_to_leave() -> None:
        raise QueueUnavailable

    def run(attempt: Attempt) -> None:
        attempt.leave(fail_to_leave)
        raise InvalidRequest("too late")

    job_id = bench.submit()
    bench.executor(run).run(LANE)
    failed = bench.jobs.get(job_id)
    assert failed.failure is not None
    assert (failed.failure.message, failed.result) == ("too late", None)
    assert "without what it was to leave" in caplog.text


def test_a_ticket_too_many_does_nothing(bench: Bench) -> None:
    job_id = bench.submit()
    executor = bench.executor(lambda _: 1)
    executor.run(LANE)
    executor.run(LANE)
    assert bench.jobs.get(job_id).attempt == 1


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
    benches = bench_over(own_valkey.url, tmp_path)
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
