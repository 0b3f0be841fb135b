"""A batch's rows, as many at a time as the memory holds and serving bears."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from tandem.errors import OutOfMemory

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class RowParts:
    """Runs batches in parts, which get smaller when the memory runs out, or when serving is to wait less for each.

    The losses and gradients of parts add up to those of the batch, since both are divided by the labels of the whole
    optimizer step: halving a part is halving the micro-batch and doubling the accumulation, and steps stay the same.
    """

    def __init__(self, rows: int, on_halved: Callable[[int, int], None]) -> None:
        """`rows` of a whole batch. `on_halved` is told how many rows were, and are now, run at a time, when the
        memory has run out."""
        self.rows_that_fit = rows
        """The memory has not run out with so many, as far as is known."""
        self._rows_borne = rows
        self._on_halved = on_halved

    @property
    def rows_at_once(self) -> int:
        """How many rows are run at a time at present."""
        return min(self.rows_that_fit, self._rows_borne)

    @property
    def are_shortened(self) -> bool:
        """Whether fewer rows are run at a time than fit."""
        return self._rows_borne < self.rows_that_fit

    def shorten(self, batch: Batch) -> bool:
        """Run half as many rows of such a batch at a time from now on; False if it is one already."""
        rows = min(self.rows_at_once, _rows(batch))
        if rows > 1:
            self._rows_borne = (rows + 1) // 2
        return rows > 1

    def lengthen(self) -> None:
        """Run as many rows at a time as fit again."""
        self._rows_borne = self.rows_that_fit

    def count(self, batch: Batch) -> int:
        """Parts of a batch at present."""
        return -(-_rows(batch) // self.rows_at_once)

    def run(self, batch: Batch, work: Callable[[Batch], Any], undo: Callable[[], None]) -> None:
        """Call `work` for each part of the batch, in order.

        When it runs out of memory, `undo` takes back what it has done for this batch, and all begins anew in smaller
        parts. Raises OutOfMemory when one row is too much.
        """
        while not self._fits(batch, work):
            undo()
            self._halve(min(self.rows_at_once, _rows(batch)))

    def _fits(self, batch: Batch, work: Callable[[Batch], Any]) -> bool:
        try:
            for part in self._parts(batch):
                work(part)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            log.warning("%d rows do not fit: %s", self.rows_at_once, error)
            # The traceback, and with it what the frames below hold of the memory, is gone after this block.
            return False
        return True

    def _halve(self, rows: int) -> None:
        if rows == 1:
            raise OutOfMemory(
                "the device's memory does not hold a forward and backward pass of one row: lower "
                "hyperparameters.max_tokens, or train on a device with more memory"
            )
        self.rows_that_fit = (rows + 1) // 2
        self._on_halved(rows, self.rows_at_once)

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        for start in range(0, _rows(batch), self.rows_at_once):
            yield {name: tensor[start : start + self.rows_at_once] for name, tensor in batch.items()}


def _rows(batch: Batch) -> int:
    return len(batch["labels"])
