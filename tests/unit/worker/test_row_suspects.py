"""Rows that kill their worker are found, whoever they are, and all others are answered.

The runner is the real one. Its worker "dies" by an exception that nothing but the test catches: what was recorded
until then is all that the next attempt gets, as after a `kill -9`.
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.artifacts import ArtifactStore
from tandem.errors import Cancelled, Draining, QueueUnavailable
from tandem.shard_rows import RowAnswer, ShardRow, merged
from tandem.specs.batch import BatchSpec
from tandem.submission import stored_spec
from tests.unit.worker.unqueued_attempt import UnqueuedAttempt
from worker.attempt import Attempt
from worker.runners import batch, shard_answers
from worker.runners.batch import BatchRunner
from worker.runners.row_suspects import LOSSES_ALONE

SOON = 30.0
"""Seconds that an event may take on a busy machine."""


class WorkerDied(BaseException):
    """No code of a worker catches it."""


class ShardAttempt(UnqueuedAttempt):
    """The record is the test's: a checkpoint comes back as JSON gives it, and Redis may be away."""

    def __init__(self, spec: BatchSpec, checkpoint: dict[str, Any] | None, crashes: int, *, away: int = 0) -> None:
        super().__init__()
        changes = {"kind": "batch", "spec": stored_spec(spec), "checkpoint": checkpoint, "crashes": crashes}
        self.job = self.job.model_copy(update=changes)
        self.checkpoint = checkpoint
        self.away = away
        """So many calls are not answered."""
        self.refused = threading.Event()

    def save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.away:
            self.away -= 1
            self.refused.set()
            raise QueueUnavailable
        self.checkpoint = json.loads(json.dumps(checkpoint))


class Shard:
    """One shard of rows that say their number, and what is left of its attempts."""

    def __init__(self, artifacts: ArtifactStore, count: int, poison: set[int], *, at_once: int) -> None:
        rows = [ShardRow(number, {"inputs": str(number)}).line() for number in range(1, count + 1)]
        self._artifacts = artifacts
        self._poison = poison
        self._runner = BatchRunner(self._run_row, self._pin, artifacts, rows_at_once=at_once)
        self._checkpoint: dict[str, Any] | None = None
        self.spec = BatchSpec(
            batch="batch_" + "0" * 24,
            task="text-generation",
            model="m",
            rows=f"artifact-{artifacts.put_stream(rows).digest}",
            count=count,
        )
        self.crashes = 0
        self.loads = True
        """Or else the worker dies while it loads the model."""
        self.runs: list[int] = []

    def attempt(self, **options: Any) -> ShardAttempt:
        return ShardAttempt(self.spec, self._checkpoint, self.crashes, **options)

    def run(self, attempt: ShardAttempt) -> list[RowAnswer] | None:
        """The answers; None if the worker died."""
        try:
            result = self._runner(attempt)
        except WorkerDied:
            self.crashes += 1
            return None
        finally:
            self._checkpoint = attempt.checkpoint
        return list(merged(self._artifacts, [name.removeprefix("artifact-") for name in result["parts"]]))

    @contextmanager
    def _pin(self, _model: str, _task: str) -> Iterator[None]:
        if not self.loads:
            raise WorkerDied
        yield

    def _run_row(self, row: Attempt) -> dict[str, Any]:
        number = int(row.job.spec["inputs"])
        self.runs.append(number)
        if number in self._poison:
            raise WorkerDied
        return {"said": number}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path_factory.mktemp('artifacts')}")


@contextmanager
def changed(module: Any, name: str, value: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, value)
        yield


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 24),
    poison=st.sets(st.integers(1, 24), max_size=6),
    at_once=st.integers(1, 8),
    save_seconds=st.sampled_from([0.0, 3600.0]),
)
def test_all_innocents_are_answered_and_all_poison_is_condemned(
    artifacts: ArtifactStore, count: int, poison: set[int], at_once: int, save_seconds: float
) -> None:
    """Whichever rows kill, and whether or not their neighbours' answers were saved; within the promised losses."""
    poison = {row for row in poison if row <= count}
    shard = Shard(artifacts, count, poison, at_once=at_once)
    with changed(shard_answers, "SAVE_SECONDS", save_seconds):
        while (answers := shard.run(shard.attempt())) is None:
            assert shard.crashes <= (1 + LOSSES_ALONE) * len(poison)
    assert [answer.row for answer in answers] == list(range(1, count + 1))
    for answer in answers:
        assert answer.result == (None if answer.row in poison else {"said": answer.row})
        assert (answer.failure is not None) == (answer.row in poison)
        assert answer.failure is None or answer.failure.code == "worker_lost"


def test_what_was_saved_before_a_loss_is_not_run_again(artifacts: ArtifactStore) -> None:
    """Nor is the one that kills, once it is found out."""
    shard = Shard(artifacts, 9, {4}, at_once=1)
    with changed(shard_answers, "SAVE_SECONDS", 0.0):
        while shard.run(shard.attempt()) is None:
            pass
    assert sorted(shard.runs) == sorted([*range(1, 10), *[4] * (LOSSES_ALONE - 1)])


def test_a_loss_is_charged_to_the_rows_of_its_own_attempt(artifacts: ArtifactStore) -> None:
    """Not to those of one that was given back before, by a drain or a pause: where the model's loading kills the
    worker, no row is to blame."""
    shard = Shard(artifacts, 1, set(), at_once=1)
    drained = shard.attempt()
    drained.stop(Draining())
    with pytest.raises(Draining):
        shard.run(drained)
    assert drained.checkpoint is not None
    assert drained.checkpoint["suspects"]["in_flight"] == [1]
    shard.loads = False
    assert shard.run(shard.attempt()) is None
    assert shard.run(shard.attempt()) is None
    shard.loads = True
    last = shard.attempt()
    assert shard.run(last) is not None
    assert last.checkpoint is not None
    assert last.checkpoint["suspects"]["losses"] == {}


def test_no_row_begins_that_the_record_does_not_know(artifacts: ArtifactStore) -> None:
    """While Redis is away the shard waits."""
    shard = Shard(artifacts, 2, set(), at_once=2)
    attempt = shard.attempt(away=3)
    with changed(batch, "AWAY_SECONDS", 0.0):
        answers = shard.run(attempt)
    assert answers is not None
    assert attempt.away == 0
    assert attempt.checkpoint is not None
    assert sorted(attempt.checkpoint["suspects"]["in_flight"]) == [1, 2]


def test_a_shard_that_waits_for_redis_can_be_stopped(artifacts: ArtifactStore) -> None:
    shard = Shard(artifacts, 2, set(), at_once=2)
    attempt = shard.attempt(away=10**9)
    with changed(batch, "AWAY_SECONDS", 3600.0), ThreadPoolExecutor(1) as thread:
        running = thread.submit(shard.run, attempt)
        assert attempt.refused.wait(SOON)
        attempt.stop(Cancelled())
        with pytest.raises(Cancelled):
            running.result(SOON)
    assert shard.runs == []
