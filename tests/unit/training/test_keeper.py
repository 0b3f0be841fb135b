"""When a training is saved: every so many steps, or seconds, and never twice at one step."""

from pathlib import Path

import pytest
import torch
from transformers import TrainerState

from tandem.specs import Hyperparameters, LoraMethod
from tests.unit.training.test_turns import Clock
from worker.training.checkpoint import Base, Course, Subject
from worker.training.keeper import CheckpointKeeper

SUBJECT = Subject(
    base=Base(name="tiny", revision=None, dtype="torch.float32"),
    data="0" * 64,
    method=LoraMethod(),
    hyperparameters=Hyperparameters(),
)


def course(step: int, *, evaluation_due: bool = False) -> Course:
    return Course(
        step=step,
        evaluation_due=evaluation_due,
        tokens=0,
        unlogged_loss=0.0,
        unlogged_figures={},
        rows_at_once=1,
        last_logged_step=0,
        first_loss=None,
        last_losses=(),
        validation_losses=(),
        history=(),
        learning_rates=(),
        scheduler={},
        seconds=0.0,
    )


class Bench:
    """A keeper on a clock of its own; `kept` are the steps that were handed over."""

    def __init__(self, folder: Path, *, save_steps: int | None = None) -> None:
        self.clock = Clock()
        self.kept: list[int] = []
        self.fails = False
        self.keeper = CheckpointKeeper(
            SUBJECT,
            folder,
            self._store,
            lambda _event: None,
            save_steps=save_steps,
            save_seconds=300.0,
            clock=self.clock,
        )

    def _store(self, folder: Path, step: int) -> None:
        if self.fails:
            raise OSError("full")
        self.kept.append(step)

    def keep(self, step: int, *, evaluation_due: bool = False) -> None:
        self.keeper.keep(course(step, evaluation_due=evaluation_due), {"a": torch.zeros(1)}, TrainerState())


def test_every_so_many_steps(tmp_path: Path) -> None:
    bench = Bench(tmp_path, save_steps=3)
    assert [step for step in range(10) if bench.keeper.is_due(step)] == [3, 6, 9]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    """With its evaluation still to come it is not the same point as after it, but close enough for a schedule."""
    bench = Bench(tmp_path, save_steps=3)
    bench.keep(3, evaluation_due=True)
    assert not bench.keeper.is_due(3)
    assert bench.keeper.has(3, evaluation_due=True)
    assert not bench.keeper.has(3, evaluation_due=False)
    assert bench.keeper.is_due(6)


def test_every_so_many_seconds(tmp_path: Path) -> None:
    """Counted from the last one, and from the start before the first."""
    bench = Bench(tmp_path)
    bench.clock.now = 299.0
    assert not bench.keeper.is_due(7)
    bench.clock.now = 300.0
    assert bench.keeper.is_due(7)
    bench.keep(7)
    bench.clock.now = 599.0
    assert not bench.keeper.is_due(8)
    bench.clock.now = 600.0
    assert bench.keeper.is_due(8)
    assert not bench.keeper.is_due(0), "nothing is learned before the first step"


def test_one_that_failed_is_tried_again_when_the_next_is_due(tmp_path: Path) -> None:
    """Not at every step: a storage that is away makes each try slow."""
    bench = Bench(tmp_path)
    bench.clock.now, bench.fails = 300.0, True
    bench.keep(7)
    assert bench.kept == []
    assert not bench.keeper.has(7, evaluation_due=False)
    assert not bench.keeper.is_due(8)
    bench.clock.now, bench.fails = 600.0, False
    assert bench.keeper.is_due(9)
    bench.keep(9)
    assert bench.kept == [9]


def test_what_a_training_goes_on_from_is_kept_already(tmp_path: Path) -> None:
    bench = Bench(tmp_path, save_steps=3)
    bench.keeper.goes_on_from(course(6))
    assert bench.keeper.has(6, evaluation_due=False)
    assert not bench.keeper.is_due(6)


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while it is written leaves neither a folder nor a hand-over."""

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("transformers.TrainerState.save_to_json", full)
    bench = Bench(tmp_path)
    bench.keep(7)
    assert bench.kept == []
    assert list(tmp_path.iterdir()) == []
