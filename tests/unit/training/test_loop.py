"""Training from rows to a PEFT folder: the numerics, and what is told meanwhile."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tandem.specs import LoraMethod
from tests.unit.training.tiny import chatml_tokenizer, colour_rows, encode_texts, run_training, tiny_llama
from worker.training import loop
from worker.training.beside_pace import BesidePace
from worker.training.pace import FixedQuantum, LatencyTarget
from worker.training.turns import Turns

IDS = torch.arange(12).reshape(1, 12) + 20


def adapter_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Server:
    """A thread that takes serving turns all the time and runs the resident; in turns of its own, it draws random
    numbers too."""

    def __init__(self, resident: PreTrainedModel, turns: Turns, *, beside: bool = False) -> None:
        self._resident, self._turns, self._beside = resident, turns, beside
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.logits: list[torch.Tensor] = []

    def _serve(self) -> None:
        while not self._stop.is_set():
            with self._turns.serving(beside=self._beside), torch.no_grad():
                if not self._beside:
                    torch.rand(7)
                self.logits.append(self._resident(input_ids=IDS).logits)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("tied", [True, False])
def test_the_resident_is_bit_for_bit_what_it_was(tied: bool, tmp_path: Path) -> None:
    """Weights, gradients, modes, hooks, config and logits of the resident do not know of the training."""
    resident = tiny_llama(tied=tied)
    weights = {name: tensor.clone() for name, tensor in resident.state_dict().items()}
    config = resident.config.to_dict()
    with torch.no_grad():
        logits = resident(input_ids=IDS).logits
    run_training(resident, tmp_path, method=LoraMethod(dropout=0.2), validation_rows=colour_rows()[:2])
    assert resident.state_dict().keys() == weights.keys()
    for name, tensor in resident.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    for parameter in resident.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
    for module in resident.modules():
        assert not module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert resident.config.to_dict() == config
    with torch.no_grad():
        assert torch.equal(resident(input_ids=IDS).logits, logits)


def test_the_same_seed_trains_the_same_adapter(tmp_path: Path) -> None:
    """Every byte of the folder, with dropout, shuffled rows and accumulation, whatever torch's state was; and another
    seed another adapter."""
    targets = ("v_proj", "q_proj", "up_proj", "o_proj", "down_proj")
    method = LoraMethod(dropout=0.2, target_modules=targets)
    resident = tiny_llama()
    for state, (name, seed) in enumerate((("first", 1), ("second", 1), ("other", 2))):
        torch.manual_seed(state)
        run_training(resident, tmp_path / name, seed=seed, method=method, gradient_accumulation_steps=2, max_steps=4)
    first, second, other = (adapter_bytes(tmp_path / name) for name in ("first", "second", "other"))
    assert set(first) == {"adapter_model.safetensors", "adapter_config.json"}
    assert first == second
    assert first["adapter_model.safetensors"] != other["adapter_model.safetensors"]
    # PEFT keeps targets in a set, whose order is another one in each process.
    assert json.loads(first["adapter_config.json"])["target_modules"] == sorted(targets)


@pytest.mark.parametrize("beside", [False, True])
def test_training_while_serving_equals_training_alone(beside: bool, tmp_path: Path) -> None:
    """Serving threads that take turns at every boundary, and draw from the same generator, or that compute at the
    same time, change no bit of the adapter; and what they serve is what the resident alone computes."""
    resident = tiny_llama()
    turns = Turns(pace=BesidePace(LatencyTarget(1.5)) if beside else FixedQuantum(0.0))
    settings = {"method": LoraMethod(dropout=0.2), "validation_rows": colour_rows()[:3], "max_steps": 6}
    alone = run_training(resident, tmp_path / "alone", **settings)
    with torch.no_grad():
        expected = resident(input_ids=IDS).logits
    with Server(resident, turns) as first, Server(resident, turns, beside=beside) as second:
        meanwhile = run_training(resident, tmp_path / "meanwhile", turns=turns, **settings)
    assert adapter_bytes(tmp_path / "alone") == adapter_bytes(tmp_path / "meanwhile")
    assert meanwhile.validation_loss_after == alone.validation_loss_after
    # Six steps and two evaluations of three layers each: far more turns than micro steps were given.
    assert len(first.logits) + len(second.logits) > 6 * 3
    assert all(torch.equal(logits, expected) for logits in (*first.logits, *second.logits))


def test_training_runs_in_any_thread(tmp_path: Path) -> None:
    """A worker trains in a thread of its pool, not in the main one; nothing of it is left running."""
    threads = set(threading.enumerate())
    outcomes: list[loop.TrainingOutcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(run_training(tiny_llama(), tmp_path)))
    thread.start()
    thread.join(60)
    assert outcomes[0].steps == 3
    assert set(threading.enumerate()) == threads


def test_something_is_learned(tmp_path: Path) -> None:
    """A dozen rows are learned by heart, and the loss says so."""
    rows = colour_rows()
    outcome = run_training(
        tiny_llama(),
        tmp_path,
        rows=rows,
        validation_rows=rows,
        method=LoraMethod(r=16, alpha=32, target_modules=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")),
        max_steps=60,
        batch_size=12,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
    )
    assert outcome.first_train_loss > 5.5, "an untrained model of 400 tokens does not guess better: ln 400 is 5.99"
    assert outcome.train_loss < 0.5 * outcome.first_train_loss
    assert outcome.validation_loss_before is not None
    assert outcome.validation_loss_after is not None
    assert outcome.validation_loss_after < 0.5 * outcome.validation_loss_before


def test_validation_before_is_the_bases_own_loss(tmp_path: Path) -> None:
    """The mean over all answer tokens of the set, computed here row by row without any of our code for it."""
    resident, rows = tiny_llama(), colour_rows()
    total, tokens = 0.0, 0
    for example in encode_texts(rows, chatml_tokenizer(), 200).examples:
        with torch.no_grad():
            logits = resident(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        labels = torch.tensor(example.labels[1:])
        total += float(F.cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    outcome = run_training(resident, tmp_path, validation_rows=rows, batch_size=5)
    assert outcome.validation_loss_before == pytest.approx(total / tokens, rel=1e-5)


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    """Rows of very different lengths, all in one step or one by one: the same loss, gradient and adapter."""
    rows = colour_rows()[:2] + colour_rows()[6:8]
    settings = {"rows": rows, "max_steps": 2, "weight_decay": 0.1}
    whole = run_training(tiny_llama(), tmp_path / "whole", batch_size=4, **settings)
    cut = run_training(tiny_llama(), tmp_path / "cut", batch_size=1, gradient_accumulation_steps=4, **settings)
    for one, other in zip(whole.history, cut.history, strict=True):
        for key in ("loss", "grad_norm", "learning_rate", "tokens"):
            assert one[key] == pytest.approx(other[key], rel=1e-4), key
    expected = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    for name, tensor in load_file(tmp_path / "cut" / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_events_tell_the_course_of_the_training(tmp_path: Path) -> None:
    """Progress after each step, metrics at each logging step and the last, evaluations at both ends and between:
    all plain JSON, in order."""
    events: list[dict[str, Any]] = []
    outcome = run_training(
        tiny_llama(),
        tmp_path,
        validation_rows=colour_rows()[:2],
        on_event=events.append,
        max_steps=5,
        logging_steps=2,
        eval_steps=2,
    )
    assert json.loads(json.dumps(events, allow_nan=False)) == events
    assert events.pop(0)["type"] == "data"
    assert [(event["type"], event["step"]) for event in events] == [
        ("evaluation", 0),
        ("progress", 1),
        ("progress", 2),
        ("metrics", 2),
        ("evaluation", 2),
        ("progress", 3),
        ("progress", 4),
        ("metrics", 4),
        ("evaluation", 4),
        ("progress", 5),
        ("metrics", 5),
        ("evaluation", 5),
    ]
    assert events[-3] == {
        "type": "progress",
        "step": 5,
        "total_steps": 5,
        "eta_seconds": 0,
        "epoch": pytest.approx(5 / 3),
    }
    assert events[1]["eta_seconds"] > 0
    assert set(events[3]) == {
        *("type", "step", "loss", "learning_rate", "grad_norm"),
        *("tokens", "tokens_per_second", "device_share", "quantum_ms", "rows_at_once"),
        *("mean_token_accuracy", "memory_bytes", "eta_seconds"),
    }
    assert 0 <= events[3]["mean_token_accuracy"] <= 1
    assert events[3]["memory_bytes"] > 10_000_000, "what this process takes, torch being loaded"
    assert set(events[0]) == {"type", "step", "loss", "mean_token_accuracy"}
    assert 0 < events[3]["device_share"] <= 1
    assert events[3]["learning_rate"] == pytest.approx(1e-2 * 4 / 5), "the rate of the second of five linear steps"
    assert outcome.history == tuple(event for event in events if event["type"] != "progress")
    assert outcome.validation_loss_before == events[0]["loss"]
    assert outcome.validation_loss_after == events[-1]["loss"]
    assert outcome.tokens == events[-2]["tokens"]


def test_epochs_count_steps_and_tokens(tmp_path: Path) -> None:
    outcome = run_training(tiny_llama(), tmp_path, max_steps=None, epochs=2.0, batch_size=5)
    assert (outcome.steps, outcome.epochs) == (6, 2.0)
    assert outcome.tokens == 2 * outcome.training_data.tokens
    assert outcome.validation_data is None
    assert outcome.validation_loss_before is None
    assert outcome.seconds > 0


def test_a_warm_up_is_kept_with_a_constant_rate(tmp_path: Path) -> None:
    outcome = run_training(tiny_llama(), tmp_path, lr_scheduler_type="constant", warmup_steps=2, max_steps=4)
    assert [event["learning_rate"] for event in outcome.history] == pytest.approx([0.0, 5e-3, 1e-2, 1e-2])


def test_a_bfloat16_resident_trains_an_fp32_adapter(tmp_path: Path) -> None:
    resident = tiny_llama(dtype=torch.bfloat16)
    outcome = run_training(resident, tmp_path, max_steps=20, validation_rows=colour_rows())
    assert outcome.validation_loss_after is not None
    assert outcome.validation_loss_before is not None
    assert outcome.validation_loss_after < outcome.validation_loss_before
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()}
    assert dtypes == {torch.float32}
    assert resident.dtype == torch.bfloat16
