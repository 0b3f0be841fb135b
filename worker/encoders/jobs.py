"""A caller's inputs on their way through the batcher: rows that wait, outputs that have come, their future."""

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any

from tandem.errors import TandemError
from worker.tasks.batched_task import BatchedTask, Piece

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class BatcherCounts:
    """What a batcher has done since it began."""

    batches: int = 0
    """Forwards begun, failed ones included."""
    rows: int = 0
    """Rows in them."""
    cost: int = 0
    """Their cost without padding, in the task's unit."""
    padded_cost: int = 0
    """The same with padding."""
    wait_seconds: float = 0.0
    """Sum over the rows of the time between their job's arrival and their forward."""

    def add_batch(self, rows: "Sequence[Row]") -> None:
        now = time.monotonic()
        self.batches += 1
        self.rows += len(rows)
        self.cost += sum(len(row) for row in rows)
        self.padded_cost += len(rows) * max(len(row) for row in rows)
        self.wait_seconds += sum(now - row.job.arrived for row in rows)


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One piece of an input, its job and its place there."""

    job: "BatcherJob"
    index: int
    """Of the input in its job."""
    place: int
    """Of the piece in its input."""
    piece: Piece

    def __len__(self) -> int:
        return len(self.piece)

    @property
    def company(self) -> Hashable:
        return self.piece.company

    @property
    def has_ended(self) -> bool:
        """Whether nobody wants it any more: its job has ended, or its input has failed by another piece."""
        return self.job.future.done() or self.job.has_result(self.index)


class BatcherJob:
    """One caller's inputs. Changed by the batcher's thread alone; its future may be cancelled by anybody."""

    def __init__(
        self,
        inputs: Sequence[Sequence[Piece] | TandemError],
        parameters: Any,
        should_stop: Callable[[], None] | None,
        keep_errors: bool,
        *,
        first: int = 0,
    ) -> None:
        """`inputs`: the pieces of each, or the error of one that cannot be used; `first` is the first one's place in
        its caller's list."""
        self.first = first
        self.future: Future[list[Any]] = Future()
        self.arrived = time.monotonic()
        self._parameters = parameters
        self._should_stop = should_stop
        self._keep_errors = keep_errors
        self._pieces = [() if isinstance(pieces, TandemError) else tuple(pieces) for pieces in inputs]
        self._outputs: list[dict[int, Any]] = [{} for _ in inputs]
        self._results: dict[int, Any] = {}
        self.waiting = deque(
            Row(self, index, place, piece)
            for index, pieces in enumerate(self._pieces)
            for place, piece in enumerate(pieces)
        )
        for index, pieces in enumerate(inputs):
            if isinstance(pieces, TandemError):
                self.refuse(index, pieces)
        self._end_if_complete()

    def has_result(self, index: int) -> bool:
        return index in self._results

    def ask_whether_to_stop(self) -> None:
        if self._should_stop is not None:
            try:
                self._should_stop()
            except Exception as error:
                self.fail(error)

    def keep(self, row: Row, output: Any, task: BatchedTask[Any, Any]) -> None:
        """Note a row's output; the last one of an input makes its result, which may fail by itself."""
        if row.has_ended:
            return
        outputs, pieces = self._outputs[row.index], self._pieces[row.index]
        outputs[row.place] = output
        if len(outputs) < len(pieces):
            return
        try:
            ordered = [outputs[place] for place in range(len(pieces))]
            self._results[row.index] = task.result(ordered, pieces, self._parameters)
        except Exception as error:
            # The library's postprocessing may stumble over one input; it is this one's error alone.
            self.refuse(row.index, error)
        self._outputs[row.index] = {}
        self._end_if_complete()

    def refuse(self, index: int, error: Exception) -> None:
        """End one input with an error: in its place if errors are kept, else the whole job's."""
        if not self._keep_errors:
            self.fail(error)
            return
        self._results[index] = error
        self._end_if_complete()

    def fail(self, error: Exception) -> None:
        """End the future with `error`, unless it has ended: its caller may cancel it at any moment."""
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            logger.debug("A job that failed with %r had already ended", error)

    def _end_if_complete(self) -> None:
        complete = len(self._results) == len(self._pieces) and not self.future.done()
        if complete and self.future.set_running_or_notify_cancel():
            self.future.set_result([self._results[index] for index in range(len(self._pieces))])
