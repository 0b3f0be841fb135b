"""When the memory runs out, or serving waits too long: fewer rows at a time, and the same steps."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tandem.errors import Draining, OutOfMemory
from tandem.specs import LoraMethod
from tandem.specs.methods import AdaLoraMethod
from tests.unit.training.interrupted import Shelf, stop_at
from tests.unit.training.tiny import colour_rows, run_training, tiny_llama
from tests.unit.training.tiny_encoders import learn, tiny_body
from worker.training.pace import FixedQuantum
from worker.training.row_parts import RowParts
from worker.training.trainer import IDLE_SECONDS
from worker.training.turns import Turns

SETTINGS: dict[str, Any] = {
    "batch_size": 6,
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "validation_rows": colour_rows(),
}


class Memory:
    """Allocates for the output of a layer, and runs out for more than `rows` of them, as torch says it on a CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int, *, after_calls: int = 0) -> None:
        self.largest = 0
        self._rows, self._calls, self._after = rows, 0, after_calls
        forward = torch.nn.functional.silu

        def silu(states: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            self._calls += 1
            if states.dim() == 3 and self._calls > self._after:
                if len(states) > self._rows:
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
                self.largest = max(self.largest, len(states))
            return forward(states, *args, **options)

        monkeypatch.setattr(torch.nn.functional, "silu", silu)


class Impatient(FixedQuantum):
    """A pace that finds training's pieces too long until they have been shortened `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__(0.0)
        self._times = times
        self.pieces_are_too_long = True

    def pieces_changed(self) -> None:
        self._times -= 1
        self.pieces_are_too_long = self._times > 0


def just_served(pace: FixedQuantum, clock: Callable[[], float] = lambda: 0.0) -> Turns:
    """Turns in which serving has had its last at second 0 of the clock."""
    turns = Turns(pace=pace, clock=clock)
    with turns.serving():
        return turns


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("method", "after_calls"),
    [(LoraMethod(), 10), (LoraMethod(), 31), (AdaLoraMethod(type="adalora", init_r=4, target_r=2), 31)],
    ids=["evaluation", "accumulation", "adalora"],
)
def test_steps_are_the_same_with_fewer_rows_at_a_time(
    method: Any, after_calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it happens: in the first evaluation, in a micro step, or in one that follows others of its step. What
    the failed pass has left in the gradients is taken back."""
    expected = run_training(tiny_llama(), tmp_path / "expected", method=method, **SETTINGS)
    memory = Memory(monkeypatch, 2, after_calls=after_calls)
    events: list[dict[str, Any]] = []
    found = run_training(tiny_llama(), tmp_path / "found", method=method, on_event=events.append, **SETTINGS)
    assert memory.largest == 2
    for one, other in zip(expected.history, found.history, strict=True):
        for name in ("loss", "grad_norm", "mean_token_accuracy", "learning_rate", "tokens"):
            if name in one:
                assert one[name] == pytest.approx(other[name], rel=1e-4), name
    for name, tensor in adapter(tmp_path / "expected").items():
        torch.testing.assert_close(adapter(tmp_path / "found")[name], tensor, rtol=1e-3, atol=1e-4)
    warnings = [event["message"] for event in events if event["type"] == "warning"]
    assert [message.partition("here on ")[2].partition(", and")[0] for message in warnings] == [
        "3 rows run at a time instead of 6",
        "2 rows run at a time instead of 3",
    ]


def test_pieces_that_are_too_long_for_serving_are_shortened(tmp_path: Path) -> None:
    """Half the rows at a time, and half of these: the adapter is that of whole micro-batches, to rounding."""
    run_training(tiny_llama(), tmp_path / "expected", **SETTINGS)
    events: list[dict[str, Any]] = []
    turns = just_served(Impatient(2))
    found = run_training(
        tiny_llama(), tmp_path / "found", turns=turns, on_event=events.append, logging_steps=1, **SETTINGS
    )
    assert [event["rows_at_once"] for event in found.history if event["type"] == "metrics"] == [3, 2, 2, 2]
    [warning] = [event["message"] for event in events if event["type"] == "warning"]
    assert "micro-batches are run in parts" in warning
    for name, tensor in adapter(tmp_path / "expected").items():
        torch.testing.assert_close(adapter(tmp_path / "found")[name], tensor, rtol=0, atol=1e-5)


def test_whole_micro_batches_come_back_when_serving_rests(tmp_path: Path) -> None:
    now = [0.0]

    def rest(event: dict[str, Any]) -> None:
        if event["type"] == "metrics" and event["step"] == 2:
            now[0] = IDLE_SECONDS

    turns = just_served(Impatient(1), lambda: now[0])
    found = run_training(tiny_llama(), tmp_path, turns=turns, on_event=rest, logging_steps=1, **SETTINGS)
    assert [event["rows_at_once"] for event in found.history if event["type"] == "metrics"] == [3, 3, 6, 6]


@pytest.mark.parametrize("settings", [{"method": LoraMethod(dropout=0.1)}, {"batch_size": 1}], ids=["dropout", "row"])
def test_a_micro_batch_that_cannot_be_cut_says_once_what_to_do(settings: dict[str, Any], tmp_path: Path) -> None:
    """Dropout would draw other numbers: an adapter must not depend on what was served meanwhile."""
    events: list[dict[str, Any]] = []
    run_training(tiny_llama(), tmp_path / "alone", **settings)
    run_training(
        tiny_llama(), tmp_path / "beside", turns=just_served(Impatient(1)), on_event=events.append, **settings
    )
    [warning] = [event for event in events if event["type"] == "warning"]
    assert "lower max_tokens or batch_size, or train without dropout" in warning["message"]
    for name, tensor in adapter(tmp_path / "alone").items():
        assert torch.equal(adapter(tmp_path / "beside")[name], tensor)


def test_rows_that_are_compared_with_each_other_stay_together(tmp_path: Path) -> None:
    """Embeddings are told apart within their micro-batch."""
    events: list[dict[str, Any]] = []
    body = tiny_body("bert")
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(body.config, name, 0.0)
    learn(
        body, tmp_path, "feature-extraction", turns=just_served(Impatient(1)), on_event=events.append, logging_steps=1
    )
    assert {event["rows_at_once"] for event in events if event["type"] == "metrics"} == {3}
    assert [event for event in events if event["type"] == "warning"]


def test_a_resumed_training_knows_how_many_rows_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not run out of memory again, and comes to the same adapter bit for bit."""
    Memory(monkeypatch, 2)
    shelf = Shelf(tmp_path)
    whole = run_training(tiny_llama(), tmp_path / "whole", **SETTINGS)
    with pytest.raises(Draining):
        run_training(tiny_llama(), tmp_path / "cut", check=stop_at(8), on_checkpoint=shelf, **SETTINGS)
    events: list[dict[str, Any]] = []
    resumed = run_training(
        tiny_llama(), tmp_path / "resumed", resume_from=shelf.last, on_event=events.append, **SETTINGS
    )
    assert not [event for event in events if event["type"] == "warning"]
    assert resumed.train_loss == whole.train_loss
    for name, tensor in adapter(tmp_path / "whole").items():
        assert torch.equal(adapter(tmp_path / "resumed")[name], tensor)


def test_one_row_that_does_not_fit_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch, 0, after_calls=12)  # not when the model is looked at, before the training
    with pytest.raises(OutOfMemory, match="does not hold a forward and backward pass of one row: lower"):
        run_training(tiny_llama(), tmp_path, batch_size=4)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    halved: list[int] = []
    parts = RowParts(4, lambda _, now: halved.append(now))

    def fail(_: dict[str, torch.Tensor]) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        parts.run({"labels": torch.zeros(4)}, fail, lambda: None)
    assert halved == []


def test_parts_cover_the_batch_in_order() -> None:
    parts, seen = RowParts(3, lambda *_: None), list[float]()
    batch = {"labels": torch.arange(7.0), "ids": torch.arange(14).reshape(7, 2)}
    parts.run(batch, lambda part: seen.extend(part["labels"].tolist()), seen.clear)
    assert seen == batch["labels"].tolist()
    assert parts.count(batch) == math.ceil(7 / 3)
