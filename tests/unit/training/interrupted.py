"""A small training with everything in it that a resumption could get wrong; run as a module, it resumes one."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from tandem.errors import AttemptStopped, Draining
from tandem.specs import LoraMethod
from tests.unit.training.tiny import colour_rows, run_training, tiny_llama
from worker.training.loop import TrainingOutcome

EXACTING: dict[str, Any] = {
    "method": LoraMethod(dropout=0.2),
    "validation_rows": colour_rows()[3:9],
    "max_steps": 7,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "eval_steps": 3,
    "logging_steps": 2,
}
"""Dropout, a warm-up, decay, rows in random order, losses summed over two steps. Twelve rows are three batches, so of
an epoch's two steps the first accumulates two micro steps and the second has one."""

CALLS = {
    "before all": 1,
    "in the first evaluation": 3,
    "before the first micro step": 4,
    "in the accumulation of the first step": 5,
    "after the first step": 6,
    "at the first epoch's end": 7,
    "in an accumulation of the second epoch": 8,
    "as an evaluation begins": 9,
    "in an evaluation": 10,
    "within the second epoch, after an evaluation": 11,
    "in an accumulation of the third epoch": 13,
    "in an evaluation at an epoch's end": 16,
    "in the last step": 18,
    "in the last evaluation": 20,
    "when all is done": 21,
}
"""Where EXACTING is when it calls `check` for the n-th time, counted from 1."""


OF_THE_MACHINE = ("tokens_per_second", "device_share", "quantum_ms", "rows_at_once", "memory_bytes", "eta_seconds")
"""Figures of an event that tell how fast it went."""


def stop_at(call: int, reason: type[AttemptStopped] = Draining) -> Callable[[], None]:
    """A `check` that raises `reason` the `call`-th time it is called."""
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise reason

    return check


class Shelf:
    """An `on_checkpoint` that copies what it gets, as an artifact store would."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.steps: list[int] = []

    def __call__(self, folder: Path, step: int) -> None:
        shutil.copytree(folder, self._folder / str(len(self.steps)))
        self.steps.append(step)

    @property
    def last(self) -> Path | None:
        return self._folder / str(len(self.steps) - 1) if self.steps else None


def comparable(outcome: TrainingOutcome) -> dict[str, Any]:
    """All of an outcome that does not depend on how fast the machine was."""
    fields = asdict(outcome)
    del fields["seconds"]
    fields["history"] = [
        {name: value for name, value in event.items() if name not in OF_THE_MACHINE} for event in outcome.history
    ]
    return fields


class Train(Protocol):
    """Trains the same thing each time, into a folder; `options` are of the trainer."""

    def __call__(self, folder: Path, **options: Any) -> TrainingOutcome: ...


def assert_resumed_equals_uninterrupted(train: Train, folder: Path, *, call: int) -> None:
    """Drained at the `call`-th check and resumed, it tells and publishes what it does when nobody interrupts it."""
    whole, shelf = train(folder / "whole"), Shelf(folder / "shelf")
    with pytest.raises(Draining):
        train(folder / "part", check=stop_at(call), on_checkpoint=shelf)
    assert shelf.steps
    torch.rand(100)  # another worker's generator stands elsewhere
    resumed = train(folder / "resumed", resume_from=shelf.last)
    assert comparable(resumed) == comparable(whole)
    assert bytes_of(folder / "resumed") == bytes_of(folder / "whole")


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Its files, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


if __name__ == "__main__":
    torch.set_num_threads(1)  # as the tests
    run_training(tiny_llama(), Path(sys.argv[2]), resume_from=Path(sys.argv[1]), **EXACTING)
