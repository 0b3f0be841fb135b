"""Running batchers over tiny models."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.unit.encoders.tiny_models import tiny_model
from worker.encoders import EncoderBatcher
from worker.tasks import ENCODER_TASKS

WAIT_SECONDS = 30.0
"""For what must happen: far longer than it takes, so that only a hang fails."""


class Gate:
    """A serving turn that waits until it is opened, and says when the batcher has come to it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.reached.set()
        assert self.opened.wait(WAIT_SECONDS)
        yield


@contextmanager
def started(task: str = "feature-extraction", **settings: Any) -> Iterator[EncoderBatcher]:
    model, tokenizer = tiny_model(settings.pop("architecture", "bert"), task)
    defaults: dict[str, Any] = {"budget": 200, "max_wait_seconds": 0.0}
    batcher = EncoderBatcher(ENCODER_TASKS[task](model, tokenizer), **defaults | settings)
    batcher.start()
    try:
        yield batcher
    finally:
        batcher.stop()
        assert batcher.unfinished_jobs == 0
        assert not any(thread.name.startswith("batcher") for thread in threading.enumerate())
