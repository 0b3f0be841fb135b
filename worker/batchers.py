"""The batchers of one resident model: one for each task it is asked for, one for its adapters, made when needed."""

import threading
from collections.abc import Callable
from typing import Any

from worker.encoders import EncoderBatcher
from worker.encoders.jobs import BatcherCounts
from worker.tasks.batched_task import BatchedTask


class Batchers:
    def __init__(self, make: Callable[[str], EncoderBatcher]) -> None:
        """`make` gives a started batcher for a task, or raises UnsupportedTask."""
        self._make = make
        self._batchers: dict[str, EncoderBatcher] = {}
        self._lock = threading.Lock()

    def get(self, task: str) -> EncoderBatcher:
        """Raises what the task's constructor raises: UnsupportedTask, InvalidModel."""
        with self._lock:
            if task not in self._batchers:
                self._batchers[task] = self._make(task)
            return self._batchers[task]

    def __contains__(self, task: str) -> bool:
        """Whether it has been asked for."""
        return task in self._batchers

    def task(self, task: str) -> BatchedTask[Any, Any]:
        return self.get(task).task

    def counts(self) -> dict[str, BatcherCounts]:
        """What each has done, by task."""
        with self._lock:
            return {task: batcher.counts for task, batcher in self._batchers.items()}

    @property
    def bytes(self) -> int:
        """What they hold beside the model: the adapters' tables."""
        # Waits for no lock either: a batcher may be in the making.
        return sum(batcher.task.bytes for batcher in list(self._batchers.values()))

    def is_busy(self) -> bool:
        # Waits for no lock: whoever holds it may hang.
        return any(batcher.is_busy() for batcher in list(self._batchers.values()))

    def progress(self) -> int:
        return sum(batcher.progress() for batcher in list(self._batchers.values()))

    def stop(self) -> None:
        with self._lock:
            for batcher in self._batchers.values():
                batcher.stop()
