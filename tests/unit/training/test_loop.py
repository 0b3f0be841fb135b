"""Training from rows to a PEFT folder: numerics, events, stopping, and what is left behind."""

import gc
import json
import math
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tandem.errors import Cancelled, ConfigurationError, InvalidRequest, InvalidTrainingData
from tandem.specs import CompletionRow, LoraMethod
from tests.unit.training.tiny import chatml_tokenizer, colour_rows, run_training, tiny_gpt2, tiny_llama
from worker.training import loop
from worker.training.data import encode_rows
from worker.training.turns import Turns

IDS = torch.arange(12).reshape(1, 12) + 20


def adapter_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Server:
    """A thread that takes serving turns all the time, draws random numbers and runs the resident."""

    def __init__(self, resident: PreTrainedModel, turns: Turns) -> None:
        self._resident, self._turns = resident, turns
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.logits: list[torch.Tensor] = []

    def _serve(self) -> None:
        while not self._stop.is_set():
            with self._turns.serving(), torch.no_grad():
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
    settings = {"method": LoraMethod(dropout=0.2), "gradient_accumulation_steps": 2, "max_steps": 4}
    for name, seed in (("first", 1), ("second", 1), ("other", 2)):
        torch.rand(3)
        run_training(tiny_llama(), tmp_path / name, seed=seed, **settings)
        torch.manual_seed(len(name))
    first, second, other = (adapter_bytes(tmp_path / name) for name in ("first", "second", "other"))
    assert set(first) == {"adapter_model.safetensors", "adapter_config.json"}
    assert first == second
    assert first["adapter_model.safetensors"] != other["adapter_model.safetensors"]


def test_training_while_serving_equals_training_alone(tmp_path: Path) -> None:
    """Serving threads that take turns at every boundary, and draw from the same generator, change no bit of the
    adapter; and what they serve is what the resident alone computes."""
    resident, turns = tiny_llama(), Turns(quantum_seconds=0.0)
    settings = {"method": LoraMethod(dropout=0.2), "validation_rows": colour_rows()[:3], "max_steps": 6}
    alone = run_training(resident, tmp_path / "alone", **settings)
    with torch.no_grad():
        expected = resident(input_ids=IDS).logits
    with Server(resident, turns) as first, Server(resident, turns) as second:
        beside = run_training(resident, tmp_path / "beside", turns=turns, **settings)
    assert adapter_bytes(tmp_path / "alone") == adapter_bytes(tmp_path / "beside")
    assert beside.validation_loss_after == alone.validation_loss_after
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
    for example in encode_rows(rows, chatml_tokenizer(), 200).examples:
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
    assert events[-3] == {"type": "progress", "step": 5, "total_steps": 5, "epoch": pytest.approx(5 / 3)}
    assert set(events[3]) == {"type", "step", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"}
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


def test_one_training_at_a_time_in_a_process(tmp_path: Path) -> None:
    """accelerate's state of gradient accumulation is the process's: a second training is refused, not mixed in."""
    refused: list[str] = []

    def train_another(event: dict[str, Any]) -> None:
        if event["type"] == "progress":
            with pytest.raises(RuntimeError, match="one training at a time") as raised:
                run_training(tiny_llama(), tmp_path / "another")
            refused.append(str(raised.value))

    assert run_training(tiny_llama(), tmp_path / "first", on_event=train_another).steps == 3
    assert len(refused) == 3
    assert not (tmp_path / "another").exists()


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    """A loss that is not a number ends the job with the setting to change, instead of an adapter of NaNs."""
    resident = tiny_llama()
    with torch.no_grad():
        resident.model.norm.weight.fill_(math.inf)
    with pytest.raises(InvalidRequest, match="training diverged: the training loss is nan at step 0") as raised:
        run_training(resident, tmp_path / "adapter")
    assert raised.value.param == "hyperparameters.learning_rate"
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
