"""Trainings that are reported to a tracker, by transformers' own integrations."""

from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from tandem.errors import InvalidRequest
from tests.unit.training.tiny import colour_rows, run_training, tiny_llama


def scalars(folder: Path) -> dict[str, list[int]]:
    """Name → steps at which it was written."""
    found: dict[str, list[int]] = {}
    (file,) = folder.glob("events.*")
    content, place = file.read_bytes(), 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        event = Event.FromString(content[place + 12 : place + 12 + length])
        place += 16 + length
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(event.step)
    return found


def test_tensorboard_gets_losses_and_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    run_training(
        tiny_llama(),
        tmp_path / "adapter",
        validation_rows=colour_rows()[:2],
        eval_steps=2,
        options={"report_to": ("tensorboard",)},
    )
    found = scalars(tmp_path / "runs")
    assert found["train/loss"] == [1, 2, 3]
    assert found["eval/loss"] == [0, 2, 3]
    assert found["eval/mean_token_accuracy"] == [0, 2, 3]


def test_tensorboard_without_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files would be deleted with the training's."""
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    with pytest.raises(InvalidRequest, match="TENSORBOARD_LOGGING_DIR is not set on the worker") as raised:
        run_training(tiny_llama(), tmp_path, options={"report_to": ("tensorboard",)})
    assert raised.value.param == "report_to"
