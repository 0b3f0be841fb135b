"""Shards through the executor over a real queue and a real artifact store; what answers a row is the tests' own."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tandem.artifacts import ArtifactStore
from tandem.errors import Draining, InvalidModel, InvalidRequest, OutOfMemory
from tandem.job import Job, JobState
from tandem.shard_rows import RowAnswer, ShardRow, merged
from tandem.specs import Scheduling
from tandem.specs.batch import BatchSpec
from tandem.submission import stored_spec
from tests.unit.worker.worker_bench import LANE, SOON, WORKER, Bench, nobody_watches
from worker.attempt import Attempt
from worker.executor import JobExecutor
from worker.monitor import JobMonitor
from worker.runners import shard_answers
from worker.runners.batch import BatchRunner

BATCH = "batch_" + "0" * 24
ROWS_AT_ONCE = 3

RunRow = Callable[[Attempt], Any]


def echo(attempt: Attempt) -> dict[str, Any]:
    return {"said": attempt.job.spec["inputs"]}


@contextmanager
def loads(_model: str, _task: str) -> Iterator[None]:
    yield


class Shards:
    """Submits shards and runs them."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench = bench
        self.artifacts = ArtifactStore(f"file://{folder}")

    def submit(self, texts: list[str], **scheduling: Any) -> str:
        rows = [ShardRow(place, {"inputs": text}).line() for place, text in enumerate(texts, start=1)]
        spec = BatchSpec(
            batch=BATCH,
            task="text-generation",
            model="m",
            rows=f"artifact-{self.artifacts.put_stream(rows).digest}",
            count=len(texts),
            **scheduling,
        )
        when = Scheduling(priority=spec.priority, deadline_seconds=spec.deadline_seconds)
        return self.bench.jobs.submit(
            kind="batch", model="m", lane=LANE, owner="o", spec=stored_spec(spec), scheduling=when
        ).job.id

    def executor(self, run_row: RunRow, pin: Any = loads) -> JobExecutor:
        bench = self.bench
        runner = BatchRunner(run_row, pin, self.artifacts, rows_at_once=ROWS_AT_ONCE)
        monitor = JobMonitor(nobody_watches)
        return JobExecutor(bench.jobs, bench.leases, bench.reporter, monitor, {"batch": runner}, WORKER)

    def job(self, job_id: str) -> Job:
        return self.bench.jobs.get(job_id)

    def answers(self, job_id: str) -> list[RowAnswer]:
        """What is kept of an ended shard."""
        job = self.job(job_id)
        parts = (
            [name.removeprefix("artifact-") for name in job.result["parts"]]
            if job.result is not None
            else list((job.checkpoint or {"files": {}})["files"].values())
        )
        return list(merged(self.artifacts, parts))


@pytest.fixture
def shards(bench: Bench, tmp_path: Path) -> Shards:
    return Shards(bench, tmp_path)


def said(answers: list[RowAnswer]) -> list[Any]:
    return [answer.result["said"] for answer in answers]


def test_every_row_has_its_answer_in_order(shards: Shards) -> None:
    texts = [f"text {number % 7}" for number in range(20)]
    job_id = shards.submit(texts)
    assert shards.executor(echo).run(LANE)

    job = shards.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert (job.result["completed"], job.result["failed"]) == (20, 0)
    assert said(shards.answers(job_id)) == texts
    assert [answer.row for answer in shards.answers(job_id)] == list(range(1, 21))


def test_a_row_that_fails_fails_alone(shards: Shards) -> None:
    def run_row(attempt: Attempt) -> dict[str, Any]:
        if attempt.job.spec["inputs"] == "bad":
            raise InvalidRequest("`inputs`: no", param="inputs")
        return echo(attempt)

    job_id = shards.submit(["a", "bad", "c"])
    shards.executor(run_row).run(LANE)

    assert shards.job(job_id).state is JobState.SUCCEEDED
    one, two, three = shards.answers(job_id)
    assert (said([one, three]), two.result) == (["a", "c"], None)
    assert two.failure is not None
    assert (two.failure.code, two.failure.param) == ("invalid_request", "inputs")


def test_an_unforeseen_error_is_its_rows_alone(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    def run_row(attempt: Attempt) -> dict[str, Any]:
        if attempt.job.spec["inputs"] == "bad":
            raise ZeroDivisionError
        return echo(attempt)

    job_id = shards.submit(["bad", "b"])
    shards.executor(run_row).run(LANE)

    first, second = shards.answers(job_id)
    assert first.failure is not None
    assert first.failure.type == "ZeroDivisionError"
    assert said([second]) == ["b"]
    assert "row 1 of" in caplog.text


def test_a_row_that_fails_for_a_passing_reason_is_tried_again(shards: Shards) -> None:
    tries: list[str] = []

    def run_row(attempt: Attempt) -> dict[str, Any]:
        text = attempt.job.spec["inputs"]
        tries.append(text)
        if text == "large" or tries.count(text) == 1:
            raise OutOfMemory
        return echo(attempt)

    job_id = shards.submit(["small", "large"])
    shards.executor(run_row).run(LANE)

    small, large = shards.answers(job_id)
    assert said([small]) == ["small"]
    assert large.failure is not None
    assert (large.failure.code, tries.count("large")) == ("out_of_memory", 2)


def test_what_stops_every_row_fails_the_shard(shards: Shards) -> None:
    @contextmanager
    def refuses(_model: str, _task: str) -> Iterator[None]:
        raise InvalidModel("broken weights")
        yield

    job_id = shards.submit(["a"])
    shards.executor(echo, refuses).run(LANE)

    job = shards.job(job_id)
    assert job.state is JobState.FAILED
    assert job.failure is not None
    assert job.failure.code == "invalid_model"


def test_rows_run_together_up_to_the_bound(shards: Shards) -> None:
    """As many as are wanted run at the same time, and never more."""
    together = threading.Barrier(ROWS_AT_ONCE)

    def run_row(attempt: Attempt) -> dict[str, Any]:
        together.wait(SOON)
        return echo(attempt)

    job_id = shards.submit(["x"] * (2 * ROWS_AT_ONCE))
    shards.executor(run_row).run(LANE)
    assert shards.job(job_id).result["completed"] == 2 * ROWS_AT_ONCE


def test_rows_that_begin_the_same_run_after_each_other(shards: Shards) -> None:
    begun: list[str] = []
    lock = threading.Lock()

    def run_row(attempt: Attempt) -> dict[str, Any]:
        with lock:
            begun.append(attempt.job.spec["inputs"][:1])
        return echo(attempt)

    texts = [f"{beginning}{number}" for number in range(8) for beginning in "ab"]
    job_id = shards.submit(texts)
    shards.executor(run_row).run(LANE)

    # Threads may swap neighbours where one beginning ends and the other starts.
    assert begun[: 8 - ROWS_AT_ONCE] == ["a"] * (8 - ROWS_AT_ONCE)
    assert begun[8 + ROWS_AT_ONCE :] == ["b"] * (8 - ROWS_AT_ONCE)
    assert said(shards.answers(job_id)) == texts


def test_a_later_attempt_does_only_the_rest(shards: Shards) -> None:
    """A drain in the midst: what was answered is not run again, and every row has one answer."""
    runs: list[str] = []
    holding = threading.Event()

    def holds(attempt: Attempt) -> dict[str, Any]:
        text = attempt.job.spec["inputs"]
        runs.append(text)
        if text == "held":
            stopped = threading.Event()
            attempt.on_stop(stopped.set)
            holding.set()
            assert stopped.wait(SOON)
            attempt.check()
        return echo(attempt)

    texts = ["a", "b", "c", "held"]
    job_id = shards.submit(texts)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(shards.executor(holds).run, LANE)
        assert holding.wait(SOON)
        shards.bench.leases.stop_all(Draining())
        first.result(SOON)
    assert shards.job(job_id).state is JobState.QUEUED
    answered = [answer.row for answer in shards.answers(job_id)]
    assert 0 < len(answered) < len(texts)

    def counts(attempt: Attempt) -> dict[str, Any]:
        runs.append(attempt.job.spec["inputs"])
        return echo(attempt)

    shards.executor(counts).run(LANE)
    assert shards.job(job_id).attempt == 2
    assert said(shards.answers(job_id)) == texts
    assert sorted(runs) == ["a", "b", "c", "held", "held"]


@pytest.mark.parametrize("why", ["cancelled", "expired"])
def test_a_shard_that_is_stopped_keeps_what_it_has_answered(shards: Shards, why: str) -> None:
    holding = threading.Event()

    def holds(attempt: Attempt) -> dict[str, Any]:
        if attempt.job.spec["inputs"] == "z":
            stopped = threading.Event()
            attempt.on_stop(stopped.set)
            holding.set()
            assert stopped.wait(SOON)
            attempt.check()
        return echo(attempt)

    job_id = shards.submit(["a", "z"], deadline_seconds=0.5 if why == "expired" else None)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(shards.executor(holds).run, LANE)
        assert holding.wait(SOON)
        if why == "cancelled":
            shards.bench.jobs.cancel(job_id)
        running.result(SOON)

    assert shards.job(job_id).state == why
    assert said(shards.answers(job_id)) == ["a"]


def test_answers_are_saved_while_the_shard_runs(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is killed loses seconds of work, not the shard's."""
    monkeypatch.setattr(shard_answers, "SAVE_SECONDS", 0.0)
    seen: list[int] = []

    def looks(attempt: Attempt) -> dict[str, Any]:
        if attempt.job.spec["inputs"] == "z":
            while not (completed := (shards.job(attempt.job.id).checkpoint or {"completed": 0})["completed"]):
                pass  # nothing tells when a checkpoint is written
            seen.append(completed)
        return echo(attempt)

    job_id = shards.submit(["a", "b", "z"])
    shards.executor(looks).run(LANE)
    assert seen[0] >= 1
    assert said(shards.answers(job_id)) == ["a", "b", "z"]


def test_rows_are_urgent_when_the_time_is_nearly_over(shards: Shards) -> None:
    """They wait for interactive work, but not beyond the batch's deadline."""
    seen: list[str] = []

    def run_row(attempt: Attempt) -> dict[str, Any]:
        seen.append(attempt.job.priority)
        return echo(attempt)

    shards.submit(["a"], deadline_seconds=60.0)
    shards.executor(run_row).run(LANE)
    shards.submit(["a"], deadline_seconds=SOON)
    late = shards.executor(run_row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.runners.batch.URGENT_SHARE", 1.0)
        late.run(LANE)
    assert seen == ["low", "normal"]


def test_progress_is_told(shards: Shards) -> None:
    job_id = shards.submit(["a", "b"])
    shards.executor(echo).run(LANE)
    assert shards.job(job_id).progress == {"done": 2, "total": 2, "completed": 2, "failed": 0}
