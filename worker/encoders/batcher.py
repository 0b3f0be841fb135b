"""The thread that runs encoder texts in batches across jobs.

It works in rounds: gather rows from all waiting jobs, a fair share from each; sort them by length and cut them into
batches; run these one by one, each in a turn of the device. Jobs that come meanwhile join the next round.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from tandem.errors import ConfigurationError, Draining, OutOfMemory, TandemError, UnsupportedTask
from tandem.specs import ClassificationParameters, EmbeddingParameters, FillMaskParameters
from worker.encoders.planning import plan_batches, take_fair_share
from worker.tasks import ENCODER_TASKS
from worker.tasks.encoder_task import EncodedText

logger = logging.getLogger(__name__)

ROUND_BATCHES = 4
"""Full batches in one round: more of them part long texts from short better, fewer let a newcomer in sooner."""

EncoderParameters = EmbeddingParameters | FillMaskParameters | ClassificationParameters


@dataclass(eq=False)
class _Job:
    """One caller's texts on their way through the batches."""

    parameters: EncoderParameters
    should_stop: Callable[[], None] | None
    future: Future[list[Any]]
    results: list[Any]
    """One entry a text; None until its batch has run."""
    unfinished: int
    arrived: float
    """time.monotonic() at submission."""
    waiting: "deque[_Row]" = field(default_factory=deque)


@dataclass(frozen=True, eq=False, slots=True)
class _Row:
    """One text, its job and its place there."""

    job: _Job
    index: int
    text: EncodedText

    def __len__(self) -> int:
        return len(self.text)


class EncoderBatcher:
    """Runs one encoder model's texts for any number of calling threads.

    A result does not depend on who else is in the batch, beyond rounding. Rows wait at most `max_wait_seconds` for
    company, and no longer than until a batch is full.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        task: str,
        *,
        serving_turn: Callable[[], AbstractContextManager[None]] = nullcontext,
        token_budget: int,
        max_wait_seconds: float,
    ) -> None:
        """`model` comes from worker.tasks.MODEL_CLASSES[task]; `token_budget` is rows · longest row of one forward.

        `serving_turn` is entered around every forward.

        Raises:
            UnsupportedTask: `task` is no encoder task, or the tokenizer lacks what it needs.
            InvalidModel: the model's way of pooling is not served.
            ConfigurationError: a budget or wait that cannot be used.
        """
        if task not in ENCODER_TASKS:
            raise UnsupportedTask(f"{task} is not an encoder task; those are {', '.join(ENCODER_TASKS)}.")
        if token_budget < 1:
            raise ConfigurationError(f"token_budget must be at least 1 token, not {token_budget}.")
        if max_wait_seconds < 0:
            raise ConfigurationError(f"max_wait_seconds must not be negative, as {max_wait_seconds} is.")
        self._task = ENCODER_TASKS[task](model, tokenizer)
        self._serving_turn = serving_turn
        self._token_budget = token_budget
        self._max_wait_seconds = max_wait_seconds
        self._jobs: list[_Job] = []
        """Jobs with unfinished rows, oldest first; changed under `_changed` alone."""
        self._changed = threading.Condition()
        self._stopping = False
        self._died_of: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f"encoder-batcher-{task}", daemon=True)
        self.batches = 0
        """Forwards begun so far, failed ones included."""
        self._rounds = 0

    @property
    def unfinished_jobs(self) -> int:
        with self._changed:
            return len(self._jobs)

    def is_busy(self) -> bool:
        """Whether jobs are unfinished: then `progress` must grow. Waits for no lock: a hung thread may hold it."""
        return bool(self._jobs)

    def progress(self) -> int:
        """A count that grows with every round and every forward."""
        return self.batches + self._rounds

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
        texts: Sequence[str],
        parameters: EncoderParameters,
        *,
        should_stop: Callable[[], None] | None = None,
    ) -> list[Any]:
        """Results of `texts` in their order, as the task's result rows; blocks the calling thread.

        Raises what `submit` raises and sets.
        """
        return self.submit(texts, parameters, should_stop=should_stop).result()

    def submit(
        self,
        texts: Sequence[str],
        parameters: EncoderParameters,
        *,
        should_stop: Callable[[], None] | None = None,
    ) -> Future[list[Any]]:
        """Queue `texts`; the future gives one result a text, in order. Its `cancel()` drops the rows not yet run.

        `should_stop` raises when the job must stop. It is called in the batcher's thread before every batch while
        the job waits, so it must be quick; what it raises becomes the future's exception.

        Raises:
            PromptTooLong, InvalidRequest: an input cannot be used; the error names it, and no other job is touched.
            Draining: the batcher has stopped.
            TandemError: its thread has died.
        The future's exception is Draining if the batcher stops first, OutOfMemory if a text does not fit the
        device even alone, or what the model raised on this job's texts.
        """
        if not texts:
            empty: Future[list[Any]] = Future()
            empty.set_result([])
            return empty
        encoded = self._task.encode(texts, parameters)
        job = _Job(
            parameters=parameters,
            should_stop=should_stop,
            future=Future(),
            results=[None] * len(encoded),
            unfinished=len(encoded),
            arrived=time.monotonic(),
        )
        job.waiting.extend(_Row(job, index, text) for index, text in enumerate(encoded))
        with self._changed:
            if self._stopping:
                raise self._refusal()
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def _work(self) -> None:
        try:
            while (rows := self._gather()) is not None:
                self._rounds += 1
                for batch in plan_batches(rows, self._token_budget):
                    if self._stopping:
                        return
                    self._run_batch(batch)
        except BaseException as error:
            # Nobody would run what waits, so nobody may wait for it.
            logger.exception("The encoder batcher died")
            with self._changed:
                self._stopping, self._died_of = True, error
            self._fail_the_rest()

    def _gather(self) -> list[_Row] | None:
        """Wait for rows, and a little for their company; None when the batcher stops."""
        with self._changed:
            while not self._stopping:
                self._jobs = [job for job in self._jobs if not job.future.done()]
                waiting = [job for job in self._jobs if job.waiting]
                if not waiting:
                    self._changed.wait()
                    continue
                tokens = sum(len(row) for job in waiting for row in job.waiting)
                patience = waiting[0].arrived + self._max_wait_seconds - time.monotonic()
                if tokens < self._token_budget and patience > 0:
                    self._changed.wait(timeout=patience)
                    continue
                return take_fair_share([job.waiting for job in waiting], ROUND_BATCHES * self._token_budget)
            return None

    def _drop_stopped_jobs(self) -> None:
        """Ask every waiting job whether it must stop, and forget those that are cancelled or ended."""
        with self._changed:
            jobs = list(self._jobs)
        for job in jobs:
            if job.should_stop is not None:
                try:
                    job.should_stop()
                except Exception as error:
                    _fail(job, error)
        with self._changed:
            self._jobs = [job for job in self._jobs if not job.future.done()]

    def _run_batch(self, rows: list[_Row]) -> None:
        """One forward, less the rows of ended jobs. If it fails, halves are tried, down to the row at fault."""
        self._drop_stopped_jobs()
        rows = [row for row in rows if not row.job.future.done()]
        if not rows:
            return
        try:
            with self._serving_turn():
                self.batches += 1
                outputs = self._task.forward([row.text for row in rows])
            results = [
                self._task.result(output, row.text, row.job.parameters)
                for row, output in zip(rows, outputs, strict=True)
            ]
        except Exception as error:
            if len(rows) > 1:
                logger.warning("A batch of %d rows failed (%r); running it in halves", len(rows), error)
                middle = len(rows) // 2
                self._run_batch(rows[:middle])
                self._run_batch(rows[middle:])
            else:
                _fail(rows[0].job, _named(error, rows[0]))
            return
        for row, result in zip(rows, results, strict=True):
            self._deliver(row, result)

    def _deliver(self, row: _Row, result: Any) -> None:
        job = row.job
        job.results[row.index] = result
        job.unfinished -= 1
        if job.unfinished == 0:
            with self._changed:
                if job in self._jobs:
                    self._jobs.remove(job)
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(job.results)

    def _fail_the_rest(self) -> None:
        with self._changed:
            left, self._jobs = self._jobs, []
        for job in left:
            _fail(job, self._refusal())

    def _refusal(self) -> TandemError:
        """Why no job is served any more; a new object each time, since every thread that raises it adds its trace."""
        if self._died_of is None:
            return Draining()
        return TandemError(f"The encoder batcher died of {self._died_of!r}; restart the worker.")


def _fail(job: _Job, error: BaseException) -> None:
    """End the job's future with `error`, unless it has ended: its caller may cancel it at any moment."""
    try:
        job.future.set_exception(error)
    except InvalidStateError:
        logger.debug("A job that failed with %r had already ended", error)


def _named(error: Exception, row: _Row) -> Exception:
    """The error of a row that failed alone; the device's lack of memory in Tandem's words."""
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(
            f"inputs[{row.index}] ({len(row)} tokens) does not fit the device's free memory, even alone; try again "
            "when it is less busy, or shorten the text.",
            param=f"inputs[{row.index}]",
        )
    return error
