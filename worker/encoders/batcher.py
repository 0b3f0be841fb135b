"""The thread that runs a model's pieces in batches across jobs.

It works in rounds: gather rows from all waiting jobs, a fair share from each; sort them by length and cut them into
batches; run these one by one, each in a turn of the device. Jobs that come meanwhile join the next round.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from tandem.errors import ConfigurationError, Draining, OutOfMemory, TandemError
from worker.encoders.jobs import BatcherCounts, BatcherJob, Row
from worker.encoders.planning import plan_batches, take_fair_share
from worker.tasks.batched_task import BatchedTask

logger = logging.getLogger(__name__)

ROUND_BATCHES = 4
"""Full batches in one round: more of them part long rows from short better, fewer let a newcomer in sooner."""


class EncoderBatcher:
    """Runs one task's inputs for any number of calling threads.

    A result does not depend on who else is in the batch, beyond rounding. Rows wait at most `max_wait_seconds` for
    company, and no longer than until a batch is full.
    """

    def __init__(
        self,
        task: BatchedTask[Any, Any],
        *,
        serving_turn: Callable[[], AbstractContextManager[None]] = nullcontext,
        budget: int,
        max_wait_seconds: float,
    ) -> None:
        """`budget` is rows · longest row of one forward, in the task's unit (tokens, pixels, samples).

        `serving_turn` is entered around every forward.

        Raises:
            ConfigurationError: a budget or wait that cannot be used.
        """
        if budget < 1:
            raise ConfigurationError(f"budget must be at least 1, not {budget}.")
        if max_wait_seconds < 0:
            raise ConfigurationError(f"max_wait_seconds must not be negative, as {max_wait_seconds} is.")
        self.task = task
        self._serving_turn = serving_turn
        self._budget = budget
        self._max_wait_seconds = max_wait_seconds
        self._jobs: list[BatcherJob] = []
        """Jobs with unfinished rows, oldest first; changed under `_changed` alone."""
        self._changed = threading.Condition()
        self._stopping = False
        self._died_of: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f"batcher-{type(task).__name__}", daemon=True)
        self._steps = 0
        """Rounds, forwards and pauses within them: they grow while work goes on."""
        self.counts = BatcherCounts()

    @property
    def unfinished_jobs(self) -> int:
        with self._changed:
            return len(self._jobs)

    def is_busy(self) -> bool:
        """Whether jobs are unfinished: then `progress` must grow. Waits for no lock: a hung thread may hold it."""
        return bool(self._jobs)

    def progress(self) -> int:
        """A count that grows with every round, every forward and every step of a long one."""
        return self._steps

    def start(self) -> None:
        """Begin to run what is submitted, and what was submitted before."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch that is running, then fail what is left with Draining. A second call does nothing."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._fail_the_rest()

    def run(
        self,
        inputs: Sequence[Any],
        parameters: Any,
        *,
        should_stop: Callable[[], None] | None = None,
        keep_errors: bool = False,
        first: int = 0,
    ) -> list[Any]:
        """Results of `inputs` in their order; blocks the calling thread. Raises what `submit` raises and sets."""
        return self.submit(inputs, parameters, should_stop=should_stop, keep_errors=keep_errors, first=first).result()

    def submit(
        self,
        inputs: Sequence[Any],
        parameters: Any,
        *,
        should_stop: Callable[[], None] | None = None,
        keep_errors: bool = False,
        first: int = 0,
    ) -> Future[list[Any]]:
        """Queue `inputs`; the future gives one result an input, in order. Its `cancel()` drops the rows not yet run.

        `should_stop` raises when the job must stop. It is called in the batcher's thread before every batch while
        the job waits, so it must be quick; what it raises becomes the future's exception. With `keep_errors`, the
        error of an input that cannot be served takes its place among the results. `first` is the place of `inputs[0]`
        in the caller's own list, for errors.

        Raises:
            PromptTooLong, InvalidRequest: an input cannot be used; the error names it, and no other job is touched.
            Draining: the batcher has stopped.
            TandemError: its thread has died.
        The future's exception is Draining if the batcher stops first, OutOfMemory if an input does not fit the
        device even alone, or what the model raised on this job's inputs.
        """
        if not inputs:
            empty: Future[list[Any]] = Future()
            empty.set_result([])
            return empty
        encoded = self._encode(inputs, parameters, keep_errors, first)
        job = BatcherJob(encoded, parameters, should_stop, keep_errors, first=first)
        if job.future.done():
            return job.future
        with self._changed:
            if self._stopping:
                raise self._refusal()
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def _encode(
        self, inputs: Sequence[Any], parameters: Any, keep_errors: bool, first: int
    ) -> list[list[Any] | TandemError]:
        """The pieces of each input; with `keep_errors`, its error in place of one that cannot be used."""
        # One that could not even be read (a broken image) comes as its error.
        unread = [isinstance(value, TandemError) for value in inputs]
        if not any(unread):
            try:
                return list(self.task.encode(inputs, parameters, first=first))
            except TandemError:
                if not keep_errors:
                    raise
        encoded: list[list[Any] | TandemError] = []
        for place, value in enumerate(inputs):
            try:
                encoded.append(
                    value if unread[place] else self.task.encode([value], parameters, first=first + place)[0]
                )
            except TandemError as error:
                encoded.append(error)
        return encoded

    def _work(self) -> None:
        try:
            while (rows := self._gather()) is not None:
                self._steps += 1
                for batch in plan_batches(rows, self._budget):
                    if self._stopping:
                        return
                    self._run_batch(batch)
        except BaseException as error:
            # Nobody would run what waits, so nobody may wait for it.
            logger.exception("The batcher died")
            with self._changed:
                self._stopping, self._died_of = True, error
            self._fail_the_rest()

    def _gather(self) -> list[Row] | None:
        """Wait for rows, and a little for their company; None when the batcher stops."""
        with self._changed:
            while not self._stopping:
                self._jobs = [job for job in self._jobs if not job.future.done()]
                waiting = [job for job in self._jobs if job.waiting]
                if not waiting:
                    self._changed.wait()
                    continue
                cost = sum(len(row) for job in waiting for row in job.waiting)
                patience = waiting[0].arrived + self._max_wait_seconds - time.monotonic()
                if cost < self._budget and patience > 0:
                    self._changed.wait(timeout=patience)
                    continue
                return take_fair_share([job.waiting for job in waiting], ROUND_BATCHES * self._budget)
            return None

    def _drop_stopped_jobs(self) -> None:
        """Ask every waiting job whether it must stop, and forget those that are cancelled or ended."""
        with self._changed:
            jobs = list(self._jobs)
        for job in jobs:
            job.ask_whether_to_stop()
        self._forget_ended()

    def _run_batch(self, rows: list[Row]) -> None:
        """One forward, less the rows of ended jobs. If it fails, halves are tried, down to the row at fault."""
        self._drop_stopped_jobs()
        rows = [row for row in rows if not row.has_ended]
        if not rows:
            return
        self.counts.add_batch(rows)
        try:
            outputs, cut_short = self._forward(rows)
        except Exception as error:
            if len(rows) > 1:
                logger.warning("A batch of %d rows failed (%r); running it in halves", len(rows), error)
                middle = len(rows) // 2
                self._run_batch(rows[:middle])
                self._run_batch(rows[middle:])
            else:
                rows[0].job.refuse(rows[0].index, _named(error, rows[0], self.task.unit))
            self._forget_ended()
            return
        if cut_short:
            return
        for row, output in zip(rows, outputs, strict=True):
            row.job.keep(row, output, self.task)
        self._forget_ended()

    def _forget_ended(self) -> None:
        with self._changed:
            self._jobs = [job for job in self._jobs if not job.future.done()]

    def _forward(self, rows: list[Row]) -> tuple[Sequence[Any], bool]:
        """One turn of the device, or several with pauses between them; and whether it was cut short by a stop."""
        cut_short = False
        turn = self._serving_turn()
        turn.__enter__()

        def pause() -> list[bool]:
            nonlocal turn, cut_short
            turn.__exit__(None, None, None)
            self._steps += 1
            self._drop_stopped_jobs()
            turn = self._serving_turn()
            turn.__enter__()
            cut_short = cut_short or self._stopping
            # What was cut short is dropped: all that is unfinished when the batcher stops fails with Draining.
            return [row.has_ended or self._stopping for row in rows]

        try:
            self._steps += 1
            outputs = self.task.forward([row.piece for row in rows], pause)
        finally:
            turn.__exit__(None, None, None)
        return outputs, cut_short

    def _fail_the_rest(self) -> None:
        with self._changed:
            left, self._jobs = self._jobs, []
        for job in left:
            job.fail(self._refusal())

    def _refusal(self) -> TandemError:
        """Why no job is served any more; a new object each time, since every thread that raises it adds its trace."""
        if self._died_of is None:
            return Draining()
        return TandemError(f"The batcher died of {self._died_of!r}; restart the worker.")


def _named(error: Exception, row: Row, unit: str) -> Exception:
    """The error of a row that failed alone; the device's lack of memory in Tandem's words."""
    if isinstance(error, torch.OutOfMemoryError):
        name = f"inputs[{row.job.first + row.index}]"
        return OutOfMemory(
            f"{name} ({len(row)} {unit}) does not fit the device's free memory, even alone; try again when it is "
            "less busy, or send a smaller input.",
            param=name,
        )
    return error
