"""How a training ends early or is refused, and what it leaves behind."""

import gc
import math
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tandem.errors import Cancelled, ConfigurationError, InvalidTrainingData, TrainingDiverged
from tandem.specs import CompletionRow
from tests.unit.training.tiny import colour_rows, run_training, tiny_gpt2, tiny_llama
from worker.training import loop
from worker.training.turns import Turns


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[PreTrainedModel]]:
    """Weak references to the twins that a training builds."""
    built: list[weakref.ref[PreTrainedModel]] = []
    build = loop.build_twin

    def noticed(resident: PreTrainedModel) -> PreTrainedModel:
        twin = build(resident)
        built.append(weakref.ref(twin))
        return twin

    monkeypatch.setattr(loop, "build_twin", noticed)
    return built


def stop_at(call: int) -> Callable[[], None]:
    """A `check` that finds the job cancelled the `call`-th time it looks."""
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Cancelled

    return check


@pytest.mark.parametrize(("call", "steps"), [(1, 0), (2, 0), (4, 0), (5, 1), (8, 3)])
def test_a_cancelled_training_leaves_nothing(
    call: int, steps: int, tmp_path: Path, twins: list[weakref.ref[PreTrainedModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is stopped (before all, in the first evaluation, between the micro steps of a step, after steps):
    the exception comes out as it was, the device is free, no file or thread is left, and the twin is gone while the
    exception is still held. An epoch has three batches, so every second step has one micro step instead of two."""
    scratch, folder = tmp_path / "scratch", tmp_path / "adapter"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    threads, turns = set(threading.enumerate()), Turns(0.0)
    progress: list[dict[str, Any]] = []
    with pytest.raises(Cancelled) as raised:
        run_training(
            tiny_llama(),
            folder,
            turns=turns,
            check=stop_at(call),
            on_event=progress.append,
            validation_rows=colour_rows()[:2],
            gradient_accumulation_steps=2,
            max_steps=50,
        )
    assert raised.traceback, "the traceback itself is kept"
    assert len([event for event in progress if event["type"] == "progress"]) == steps
    assert all(twin() is None for twin in twins)
    assert len(twins) == (call > 1)
    assert not folder.exists()
    assert list(scratch.iterdir()) == []
    assert set(threading.enumerate()) == threads
    with turns.training():
        turns.give_way()
    run_training(tiny_llama(), folder)  # and the next training may start


def test_a_finished_training_frees_the_twin(tmp_path: Path, twins: list[weakref.ref[PreTrainedModel]]) -> None:
    gc.disable()
    try:
        run_training(tiny_llama(), tmp_path)
        assert [twin() for twin in twins] == [None]
    finally:
        gc.enable()


def test_nothing_is_written_outside_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No checkpoints, logs or printed metrics."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run_training(tiny_llama(), tmp_path / "adapter", validation_rows=colour_rows()[:2])
    assert list((tmp_path / "here").iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_slow_reader_of_events_does_not_hold_the_device(tmp_path: Path) -> None:
    """Events and checks come between turns: serving is never behind somebody's network."""
    turns = Turns(0.0)
    calls: list[str] = []

    def takes_a_serving_turn(*_: object) -> None:
        with turns.serving():  # raises if this thread still held its training turn
            calls.append("served")

    run_training(
        tiny_llama(),
        tmp_path,
        turns=turns,
        on_event=takes_a_serving_turn,
        check=takes_a_serving_turn,
        validation_rows=colour_rows()[:2],
        gradient_accumulation_steps=2,
    )
    assert len(calls) > 10


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    """A loss that is not a number ends the job with the setting to change, instead of an adapter of NaNs."""
    resident, turns = tiny_llama(), Turns(0.0)
    with torch.no_grad():
        resident.model.norm.weight.fill_(math.inf)
    with pytest.raises(TrainingDiverged, match="training diverged: the training loss is nan in step 1") as raised:
        run_training(resident, tmp_path / "adapter", turns=turns)
    assert raised.value.param == "hyperparameters.learning_rate"
    with turns.serving():
        pass  # the turn in which it was found is over
    assert not (tmp_path / "adapter").exists()


def test_unusable_validation_rows_name_the_validation_file(tmp_path: Path) -> None:
    rows = [CompletionRow(prompt="red " * 200, completion="stop")]
    with pytest.raises(InvalidTrainingData) as raised:
        run_training(tiny_llama(), tmp_path, validation_rows=list(rows), max_tokens=32)
    assert raised.value.param == "validation_file"


def test_rows_are_cut_at_the_models_context(tmp_path: Path) -> None:
    """The default of 1,024 tokens does not reach beyond the 64 positions of this model."""
    rows = [*colour_rows()[6:], CompletionRow(prompt="red ", completion="stop " * 60)]
    outcome = run_training(tiny_gpt2(), tmp_path, rows=rows)
    assert outcome.training_data.truncated_rows == 1


def test_a_resident_away_from_the_training_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer would copy the weights to its own device: the worker must be given the right one."""
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda _: 2))
    with pytest.raises(ConfigurationError, match="CUDA_VISIBLE_DEVICES"):
        run_training(tiny_llama(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
