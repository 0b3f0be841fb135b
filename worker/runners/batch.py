"""Runs the shards of batches: each row as a job of its own would be, many at a time, all on one resident model."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any

from tandem.artifacts import ArtifactStore
from tandem.errors import AttemptStopped, TandemError
from tandem.job import Failure, Job
from tandem.shard_rows import RowAnswer, ShardRow, read_shard
from tandem.specs import PRIORITIES, Priority, Task
from tandem.specs.batch import BatchSpec
from worker.attempt import Attempt
from worker.runners.shard_answers import SAVE_SECONDS, ShardAnswers

log = logging.getLogger(__name__)

ROW_TRIES = 2
"""Of a row that fails for a passing reason, such as memory that is short at the moment; then it has failed."""
URGENT_SHARE = 0.1
"""Of the time that a batch has. In the last part of it its rows no longer wait for interactive work."""
URGENT: Priority = "normal"


class BatchRunner:
    def __init__(
        self,
        run_job: Callable[[Attempt], Any],
        pin: Callable[[str, Task], AbstractContextManager[object]],
        artifacts: ArtifactStore,
        *,
        rows_at_once: int,
    ) -> None:
        """`run_job` executes one inference job. `pin` loads a model and keeps it in memory while its block runs; it
        raises what stops every row.
        """
        self._run_job = run_job
        self._pin = pin
        self._artifacts = artifacts
        self._rows_at_once = rows_at_once

    def __call__(self, attempt: Attempt) -> dict[str, Any]:
        """The parts of its answers, and how many rows succeeded and failed.

        Raises what stopped the attempt, after its answers so far are saved; and what loading the model raises.
        """
        spec = BatchSpec.model_validate(attempt.job.spec)
        answers = ShardAnswers(attempt, self._artifacts, spec.count)
        rows = read_shard(self._artifacts.chunks(spec.rows.removeprefix("artifact-")))
        left = sorted((row for row in rows if not answers.has(row.row)), key=_beginning)
        with self._pin(spec.model, spec.task):
            self._run_rows(attempt, spec, left, answers)
        return answers.result()

    def _run_rows(self, attempt: Attempt, spec: BatchSpec, rows: Iterable[ShardRow], answers: ShardAnswers) -> None:
        running = RunningRows(attempt)
        waiting = iter(rows)
        futures: set[Future[RowAnswer]] = set()
        with ThreadPoolExecutor(self._rows_at_once, thread_name_prefix=f"{attempt.job.id}-row") as threads:
            try:
                while True:
                    for row in islice(waiting, self._rows_at_once - len(futures)):
                        futures.add(threads.submit(self._answer, attempt, spec, row, running))
                    if not futures:
                        return
                    attempt.check()
                    ended = wait(futures, timeout=SAVE_SECONDS, return_when=FIRST_COMPLETED).done
                    futures -= _added(ended, answers)
                    for stopped in ended & futures:
                        stopped.result()  # raises what stopped it
                    answers.save_if_due()
            except AttemptStopped:
                # Rows that end just now count as well: what is not saved is done again.
                running.stop(AttemptStopped())
                _added(wait(futures).done, answers)
                answers.save()
                # A row is stopped by the engine's end as well; if the job is to stop, it knows better why.
                attempt.check()
                raise
            finally:
                running.stop(AttemptStopped())

    def _answer(self, attempt: Attempt, spec: BatchSpec, row: ShardRow, running: "RunningRows") -> RowAnswer:
        """A row's result, or its failure. Raises AttemptStopped alone."""
        failure = None
        for _ in range(ROW_TRIES):
            try:
                result = self._run(attempt, spec, row, running)
            except AttemptStopped:
                raise
            except Exception as error:
                failure = Failure.of(error)
                if failure.code == TandemError.code:
                    log.warning("row %d of %s failed", row.row, spec.batch, exc_info=error)
                if not failure.retryable:
                    break
            else:
                return RowAnswer(row.row, time.time(), result)
        return RowAnswer(row.row, time.time(), failure=failure)

    def _run(self, attempt: Attempt, spec: BatchSpec, row: ShardRow, running: "RunningRows") -> Any:
        changes = {"kind": "inference", "spec": row.spec, "priority": row_priority(attempt, spec)}
        with running.one(attempt.job.model_copy(update=changes)) as execution:
            return self._run_job(execution)


class RunningRows:
    """The rows of a shard that run now: they stop with it, and are forgotten as they end."""

    def __init__(self, shard: Attempt) -> None:
        self._shard = shard
        self._rows: set[Attempt] = set()
        self._reason: AttemptStopped | None = None
        self._lock = threading.Lock()
        shard.on_stop(self._stop_with_the_shard)

    @contextmanager
    def one(self, job: Job) -> Iterator[Attempt]:
        """The execution of a row while the block runs. Raises what stopped the rows before it."""
        row = self._shard.of_row(job)
        with self._lock:
            if self._reason is not None:
                raise self._reason
            self._rows.add(row)
        try:
            yield row
        finally:
            with self._lock:
                self._rows.discard(row)

    def stop(self, reason: AttemptStopped) -> None:
        """Stop those that run, and let no other begin. The first reason stands."""
        with self._lock:
            self._reason = self._reason or reason
            rows = list(self._rows)
        for row in rows:
            row.stop(reason)

    def _stop_with_the_shard(self) -> None:
        try:
            self._shard.check()
        except AttemptStopped as reason:
            self.stop(reason)


def _added(ended: set[Future[RowAnswer]], answers: ShardAnswers) -> set[Future[RowAnswer]]:
    """Those that came to an answer, which is noted; the others were stopped."""
    answered = {future for future in ended if future.exception() is None}
    for future in answered:
        answers.add(future.result())
    return answered


def row_priority(attempt: Attempt, spec: BatchSpec) -> Priority:
    """How urgent a row is that begins now: the batch's own priority, or more when its time is nearly over."""
    own = attempt.job.priority
    if attempt.deadline is None or spec.deadline_seconds is None:
        return own
    if attempt.deadline - time.monotonic() > URGENT_SHARE * spec.deadline_seconds:
        return own
    return max(own, URGENT, key=PRIORITIES.index)


def _beginning(row: ShardRow) -> tuple[str, str]:
    """Sorts rows whose prompts begin the same next to each other, so that the engine reads the beginning once."""
    return row.spec.get("adapter") or "", json.dumps(row.spec["inputs"], ensure_ascii=False)
