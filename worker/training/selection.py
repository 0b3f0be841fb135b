"""When more training does not help, and which step was the best: decided by the validation loss, in plain Python."""

from collections.abc import Iterable, Mapping
from typing import Any


class Selection:
    """The best evaluation so far, and whether it is time to stop.

    Early stopping counts as transformers' EarlyStoppingCallback does: an evaluation is an improvement if its loss is
    lower than the lowest before it by more than the threshold. The evaluation before the first step counts for
    neither: there is nothing of the training in it yet.
    """

    def __init__(self, *, patience: int | None, threshold: float) -> None:
        """`patience`: evaluations in a row without an improvement after which to stop; None never stops."""
        self._patience = patience
        self._threshold = threshold
        self._waited = 0
        self.best: tuple[int, float] | None = None
        """Step and loss of the best evaluation."""

    @property
    def is_over(self) -> bool:
        """Whether the training should stop."""
        return self._patience is not None and self._waited >= self._patience

    def add(self, step: int, loss: float) -> bool:
        """Take the next evaluation; answers whether it is the best one so far."""
        if step == 0:
            return False
        lowest = None if self.best is None else self.best[1]
        improves = lowest is None or (loss < lowest and lowest - loss > self._threshold)
        self._waited = 0 if improves else self._waited + 1
        if lowest is not None and loss >= lowest:
            return False
        self.best = (step, loss)
        return True

    def replay(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Take the evaluations among the events of a training that goes on."""
        for event in history:
            if event["type"] == "evaluation":
                self.add(event["step"], event["loss"])
