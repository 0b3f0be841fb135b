"""Runs the shards of batches: each row as a job of its own would be, many at a time, all on one resident model."""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any

from tandem.artifacts import ArtifactStore
from tandem.errors import AttemptStopped, TandemError, WorkerLost
from tandem.job import Failure, Job
from tandem.shard_rows import RowAnswer, ShardRow, read_shard
from tandem.specs import PRIORITIES, Priority, Task
from tandem.specs.batch import BatchSpec
from worker.attempt import Attempt
from worker.runners.row_suspects import LOSSES_ALONE
from worker.runners.shard_answers import SAVE_SECONDS, ShardAnswers

log = logging.getLogger(__name__)

ROW_TRIES = 2
"""Of a row that fails for a passing reason, such as memory that is short at the moment; then it has failed."""
URGENT_SHARE = 0.1
"""Of the time that a batch has. In the last part of it its rows no longer wait for interactive work."""
URGENT: Priority = "normal"
AWAY_SECONDS = 0.5
"""Between two tries to record what is about to run while Redis is away."""
CONDEMNED = Failure.of(
    WorkerLost(
        f"the worker died or fell silent {LOSSES_ALONE} times while it ran this row and no other of its shard; it is "
        "not tried again, and the batch's other rows are answered"
    )
)


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
        for condemned in answers.suspects.condemned:
            if not answers.has(condemned):
                log.warning("row %d of %s kills its workers", condemned, spec.batch)
                answers.add(RowAnswer(condemned, time.time(), failure=CONDEMNED))
        answers.save()
        if answers.suspects.is_news:
            answers.record()
        left = sorted((row for row in rows if not answers.has(row.row)), key=_beginning)
        others, suspects = answers.suspects.set_apart(left)
        with self._pin(spec.model, spec.task):
            self._run_rows(attempt, spec, others, answers, at_once=self._rows_at_once)
            answers.save()  # a suspect may be the end of this process
            self._run_rows(attempt, spec, suspects, answers, at_once=1)
        return answers.result()

    def _run_rows(
        self, attempt: Attempt, spec: BatchSpec, rows: Iterable[ShardRow], answers: ShardAnswers, *, at_once: int
    ) -> None:
        running = RunningRows(attempt)
        waiting = deque(rows)
        futures: dict[Future[RowAnswer], int] = {}
        with ThreadPoolExecutor(at_once, thread_name_prefix=f"{attempt.job.id}-row") as threads:
            try:
                while waiting or futures:
                    while waiting and len(futures) < at_once:
                        upcoming = [row.row for row in islice(waiting, at_once)]
                        _tell_before(attempt, answers, upcoming, futures.values())
                        row = waiting.popleft()
                        futures[threads.submit(self._answer, attempt, spec, row, running)] = row.row
                    attempt.check()
                    ended = wait(futures, timeout=SAVE_SECONDS, return_when=FIRST_COMPLETED).done
                    for answered in _added(ended, answers):
                        del futures[answered]
                    for stopped in ended & futures.keys():
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


def _tell_before(attempt: Attempt, answers: ShardAnswers, upcoming: Sequence[int], in_flight: Iterable[int]) -> None:
    """The job's record knows of the first upcoming row before it begins; those behind it are told at once with it.

    Waits while Redis is away. Raises what stops the attempt.
    """
    first, *others = upcoming
    if not answers.suspects.begin(first, [*in_flight, *others]):
        return
    stopped = threading.Event()
    attempt.on_stop(stopped.set)
    while not answers.record():
        stopped.wait(AWAY_SECONDS)
        attempt.check()


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
