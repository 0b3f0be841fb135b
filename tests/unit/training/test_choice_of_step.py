"""Which step's adapter a training comes to: the last, the best, or the one at which it stops early."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tandem.errors import Draining, TrainingDiverged
from tests.unit.training.interrupted import Shelf, comparable, stop_at
from tests.unit.training.tiny import COLOURS, chat, colour_rows, run_training, tiny_llama
from worker.training import loop

WRONG = [chat(asked, answer) for asked, answer in zip(COLOURS, reversed(COLOURS.values()), strict=True)]
"""What gets worse the better the rows are learned."""
OVERFITTED: dict[str, Any] = {
    "rows": colour_rows()[:6],
    "validation_rows": WRONG,
    "max_steps": 24,
    "batch_size": 6,
    "learning_rate": 3e-2,
    "lr_scheduler_type": "constant",
    "eval_steps": 2,
}


def losses(outcome: loop.TrainingOutcome) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in outcome.history if event["type"] == "evaluation"}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_the_best_evaluations_adapter_is_kept(tmp_path: Path) -> None:
    """It is, bit for bit, what a training that ends there has come to."""
    outcome = run_training(tiny_llama(), tmp_path / "best", keep="best", **OVERFITTED)
    course = losses(outcome)
    best = min((step for step in course if step), key=lambda step: course[step])
    assert outcome.kept_step == best < outcome.steps == outcome.total_steps == 24
    run_training(tiny_llama(), tmp_path / "short", **{**OVERFITTED, "max_steps": best})
    for name, tensor in adapter(tmp_path / "short").items():
        assert torch.equal(adapter(tmp_path / "best")[name], tensor)


def test_training_stops_when_the_validation_loss_no_longer_falls(tmp_path: Path) -> None:
    outcome = run_training(tiny_llama(), tmp_path, early_stopping_patience=2, **OVERFITTED)
    course = losses(outcome)
    best = min((step for step in course if step), key=lambda step: course[step])
    assert outcome.steps == outcome.kept_step == best + 4
    assert outcome.total_steps == 24
    assert outcome.history[-1]["type"] == "evaluation"


@pytest.mark.parametrize("calls_before_the_end", [0, 1, 2, 3, 6, 10])
def test_a_resumed_training_chooses_as_one_that_was_never_stopped(calls_before_the_end: int, tmp_path: Path) -> None:
    """The best adapter so far, and how long it has been the best, are in the checkpoint: wherever it is stopped, also
    in the evaluation that ends it and after that."""
    settings = {**OVERFITTED, "keep": "best", "early_stopping_patience": 2}
    calls: list[None] = []
    whole = run_training(tiny_llama(), tmp_path / "whole", check=lambda: calls.append(None), **settings)
    call = len(calls) - calls_before_the_end
    shelf = Shelf(tmp_path)
    with pytest.raises(Draining):
        run_training(tiny_llama(), tmp_path / "cut", check=stop_at(call), on_checkpoint=shelf, **settings)
    resumed = run_training(tiny_llama(), tmp_path / "resumed", resume_from=shelf.last, **settings)
    assert comparable(resumed) == comparable(whole)
    for name, tensor in adapter(tmp_path / "whole").items():
        assert torch.equal(adapter(tmp_path / "resumed")[name], tensor)


class Publisher:
    """An `on_adapter` that keeps what it gets."""

    def __init__(self) -> None:
        self.adapters: dict[int, dict[str, torch.Tensor]] = {}
        self.events: dict[int, list[str]] = {}

    def __call__(self, folder: Path, step: int, events: Any) -> None:
        self.adapters[step] = adapter(folder)
        self.events[step] = [event["type"] for event in events]


def test_each_checkpoint_is_handed_over_as_an_adapter(tmp_path: Path) -> None:
    """With what was measured at its step, after it was evaluated; taking it out changes nothing of the training."""
    settings = {**OVERFITTED, "max_steps": 7, "save_steps": 2, "eval_steps": 4}
    publisher, shelf = Publisher(), Shelf(tmp_path)
    options = {"on_adapter": publisher}
    run_training(tiny_llama(), tmp_path / "published", on_checkpoint=shelf, options=options, **settings)
    run_training(tiny_llama(), tmp_path / "plain", **settings)
    assert list(publisher.adapters) == shelf.steps == [2, 4, 6]
    assert publisher.events == {2: ["metrics"], 4: ["metrics", "evaluation"], 6: ["metrics"]}
    for name, tensor in adapter(tmp_path / "plain").items():
        assert torch.equal(adapter(tmp_path / "published")[name], tensor)
    run_training(tiny_llama(), tmp_path / "two", **{**settings, "max_steps": 2, "validation_rows": None})
    for name, tensor in adapter(tmp_path / "two").items():
        assert torch.equal(publisher.adapters[2][name], tensor)


def test_a_training_that_diverges_has_its_good_checkpoints_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is lost in step 4: that step is named, and nothing of it is kept."""
    publisher, shelf = Publisher(), Shelf(tmp_path)
    steps = 0

    def clip(parameters: Any, *args: Any, **options: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return torch.tensor(float("nan") if steps == 4 else 1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    with pytest.raises(TrainingDiverged, match="the gradient is nan in step 4; lower the learning rate"):
        run_training(
            tiny_llama(),
            tmp_path / "adapter",
            max_steps=8,
            save_steps=1,
            on_checkpoint=shelf,
            options={"on_adapter": publisher},
        )
    assert list(publisher.adapters) == shelf.steps == [1, 2, 3]
    assert all(tensor.isfinite().all() for tensor in publisher.adapters[3].values())
    assert not (tmp_path / "adapter").exists()
