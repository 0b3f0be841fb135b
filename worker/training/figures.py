"""Figures that are means over labels, summed up over batches."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class FigureSums:
    """Sums by name, and the number of labels that they are over."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._labels = 0

    def add(self, sums: Mapping[str, Tensor], labels: int) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._labels += labels

    def take(self, other: "FigureSums") -> None:
        """Add another's sums, and leave nothing in it."""
        for name, value in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._labels += other._labels
        other.clear()

    def means(self) -> dict[str, float]:
        return {name: value / self._labels for name, value in self._sums.items()}

    def clear(self) -> None:
        self._sums.clear()
        self._labels = 0

    def state(self) -> dict[str, Any]:
        """JSON-ready, for a checkpoint."""
        return {"sums": dict(self._sums), "labels": self._labels}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._sums, self._labels = dict(state["sums"]), state["labels"]
