"""Training, from the outside: an adapter is learned beside a model that goes on serving."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedModel

from tandem.errors import Cancelled, Draining, InvalidRequest
from tandem.specs import GenerationParameters, Hyperparameters, LoraMethod
from tandem.specs.methods import AnyMethod, Ia3Method, PrefixTuningMethod, PromptTuningMethod, PTuningMethod
from tests.unit.training.tiny import chat, chatml_tokenizer, colour_rows, tiny_llama
from worker.engine.adapters.weights import read_adapter
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence
from worker.training import loop
from worker.training.loop import TrainingOutcome, train
from worker.training.turns import Turns

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it loads an adapter.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = torch.arange(16).reshape(1, 16) + 30


@pytest.fixture(autouse=True, scope="module")
def _one_compute_thread() -> Iterator[None]:
    """OpenMP's threads spin while they wait for each other, which beside any other process takes most of a step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def resident() -> LlamaForCausalLM:
    """A model that is loaded and ready to serve."""
    return tiny_llama()


def learn_colours(
    resident: LlamaForCausalLM,
    folder: Path,
    turns: Turns | None = None,
    events: list[dict[str, Any]] | None = None,
    method: AnyMethod | None = None,
    steps: int = 8,
    learning_rate: float = 2e-2,
) -> TrainingOutcome:
    rows = colour_rows()
    return train(
        resident,
        chatml_tokenizer(),
        base_name="tiny-llama",
        training_rows=rows,
        validation_rows=rows[:4],
        method=method or LoraMethod(r=4),
        hyperparameters=Hyperparameters(max_steps=steps, batch_size=4, learning_rate=learning_rate),
        turns=turns or Turns(quantum_seconds=0.02),
        on_event=(events if events is not None else []).append,
        check=lambda: None,
        folder=folder,
    )


def test_training_writes_an_adapter_that_peft_loads(
    resident: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder holds PEFT's two files; on a fresh copy of the base it gives the logits that training ended with."""
    at_the_end: list[torch.Tensor] = []
    save = loop.save_adapter

    def look_and_save(model: PeftModel, folder: Path) -> None:
        model.eval()
        with torch.no_grad():
            at_the_end.append(_without_boundaries(model)(input_ids=IDS).logits)
        save(model, folder)

    monkeypatch.setattr(loop, "save_adapter", look_and_save)
    learn_colours(resident, tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-llama"
    reloaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    with torch.no_grad():
        logits = reloaded(input_ids=IDS).logits
        assert torch.equal(logits, at_the_end[0])
        assert not torch.allclose(logits, resident(input_ids=IDS).logits), "nothing was learned"


def _without_boundaries(model: PeftModel) -> PeftModel:
    """The trained model, free to run outside of a turn."""
    for module in model.modules():
        module._forward_pre_hooks.clear()
    return model


def test_the_model_that_serves_does_not_change(resident: LlamaForCausalLM, tmp_path: Path) -> None:
    """Training reads the resident's weights and writes none of them."""
    with torch.no_grad():
        before = resident(input_ids=IDS).logits
    learn_colours(resident, tmp_path)
    with torch.no_grad():
        assert torch.equal(resident(input_ids=IDS).logits, before)
    assert not resident.training


def test_a_model_in_an_engine_is_trained_like_one_alone(resident: LlamaForCausalLM, tmp_path: Path) -> None:
    """The engine puts its own linears and attention into the resident; the twin is built without them, and the
    adapter is the same, byte for byte."""
    learn_colours(resident, tmp_path / "alone")
    sizes = {"sequence_slots": 2, "slot_tokens": 64, "step_tokens": 16, "adapter_slots": 1, "adapter_rank": 8}
    in_engine = tiny_llama()
    Engine(in_engine, chatml_tokenizer(), **sizes)
    assert type(in_engine.model.layers[0].self_attn.q_proj) is not torch.nn.Linear
    learn_colours(in_engine, tmp_path / "in-engine")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "in-engine" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


METHODS: dict[str, tuple[AnyMethod, float]] = {
    "lora": (LoraMethod(r=4), 2e-2),
    "dora": (LoraMethod(r=4, use_dora=True), 2e-2),
    "ia3": (Ia3Method(type="ia3"), 1e-1),
    "prefix": (PrefixTuningMethod(type="prefix-tuning", num_virtual_tokens=6), 1e-1),
    "prompt": (PromptTuningMethod(type="prompt-tuning", num_virtual_tokens=6), 1e-1),
    "p-tuning": (PTuningMethod(type="p-tuning", num_virtual_tokens=6), 2e-2),
}
"""Each method with a learning rate that suits it."""


def test_whatever_the_method_what_was_trained_is_served(resident: LlamaForCausalLM, tmp_path: Path) -> None:
    """Six methods, trained one after the other on a model in an engine, then served in one batch by that engine: each
    adapter answers as PEFT alone would have it answer, token for token, and the base as ever."""
    sizes = {"sequence_slots": 7, "slot_tokens": 64, "step_tokens": 32, "adapter_slots": 6, "adapter_rank": 8}
    engine = Engine(resident, chatml_tokenizer(), **sizes)
    for name, (method, rate) in METHODS.items():
        learn_colours(resident, tmp_path / name, method=method, learning_rate=rate)

    adapters = {name: read_adapter(name, tmp_path / name, resident) for name in METHODS}
    sequences = {
        name: Sequence(PROMPT, GenerationParameters(max_new_tokens=8), adapter=adapters.get(name))
        for name in (*METHODS, "base")
    }
    for sequence in sequences.values():
        engine.submit(sequence)
    while engine.has_work():
        engine.step()
    answers = {name: sequence.future.result(0).token_ids for name, sequence in sequences.items()}

    for name in METHODS:
        assert answers[name] == greedy(PeftModel.from_pretrained(tiny_llama(), tmp_path / name)), name
    assert answers["base"] == greedy(tiny_llama())
    assert len(set(answers.values())) > 3, "most adapters have learned to say something else"


PROMPT = chatml_tokenizer().encode("green means ")


def greedy(model: LlamaForCausalLM | PeftModel) -> tuple[int, ...]:
    """The most likely tokens after PROMPT, up to the one that ends the answer or eight."""
    tokens: list[int] = []
    while len(tokens) < 8 and tokens[-1:] != [2]:
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([[*PROMPT, *tokens]])).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tuple(tokens)


def test_serving_goes_on_within_a_training_step(resident: LlamaForCausalLM, tmp_path: Path) -> None:
    """Serving gets its turns at the boundaries of layers, many within each step."""
    turns = Turns(quantum_seconds=0.0)
    over = threading.Event()
    served_at_step = {0: 0}
    events: list[dict[str, Any]] = []

    def serve() -> None:
        while not over.is_set():
            with turns.serving(), torch.no_grad():
                resident(input_ids=IDS)
            step = max((event["step"] for event in events if event["type"] == "progress"), default=0)
            served_at_step[step] = served_at_step.get(step, 0) + 1

    server = threading.Thread(target=serve)
    server.start()
    learn_colours(resident, tmp_path, turns, events)
    over.set()
    server.join(20)
    assert not server.is_alive()
    # Three layers, forward and backward, and a chunk of the loss: seven boundaries a step.
    assert sum(served_at_step.values()) > 8 * 3


def test_the_loss_is_measured_before_and_after(resident: LlamaForCausalLM, tmp_path: Path) -> None:
    """On rows kept for validation, as a mean over the tokens of their answers."""
    outcome = learn_colours(resident, tmp_path, steps=30)
    assert outcome.validation_loss_before is not None
    assert outcome.validation_loss_after is not None
    assert outcome.validation_loss_after < outcome.validation_loss_before - 0.5


def test_events_report_every_step(resident: LlamaForCausalLM, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    learn_colours(resident, tmp_path, events=events)
    assert [event["step"] for event in events if event["type"] == "progress"] == list(range(1, 9))
    losses = [event["loss"] for event in events if event["type"] == "metrics"]
    assert len(losses) == 8
    assert losses[-1] < losses[0]


def test_a_cancelled_training_stops_within_a_step(resident: PreTrainedModel, tmp_path: Path) -> None:
    """What `check` raises comes out of `train`; there is no adapter, and the device is free."""
    turns, steps = Turns(quantum_seconds=0.02), 0

    def check() -> None:
        if steps == 2:
            raise Cancelled

    def count(event: dict[str, Any]) -> None:
        nonlocal steps
        steps = event.get("step", 0)

    with pytest.raises(Cancelled):
        train(
            resident,
            chatml_tokenizer(),
            base_name="tiny-llama",
            training_rows=[chat("red", "stop")],
            validation_rows=None,
            method=LoraMethod(),
            hyperparameters=Hyperparameters(max_steps=1000),
            turns=turns,
            on_event=count,
            check=check,
            folder=tmp_path / "adapter",
        )
    assert steps == 2
    assert not (tmp_path / "adapter").exists()
    with turns.serving():
        pass


def test_a_drained_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """When a worker drains, it keeps a checkpoint of the last completed step. Another one, with nothing but that
    folder and the job, comes to the very adapter that the first would have come to."""
    settings: dict[str, Any] = {
        "base_name": "tiny-llama",
        "training_rows": colour_rows(),
        "validation_rows": None,
        "method": LoraMethod(dropout=0.1),
        "hyperparameters": Hyperparameters(max_steps=6, batch_size=4),
    }
    steps: list[int] = []

    def note(event: dict[str, Any]) -> None:
        if event["type"] == "progress":
            steps.append(event["step"])

    def drain_after_two_steps() -> None:
        if len(steps) == 2:
            raise Draining

    def learn(name: str, check: Callable[[], None] = lambda: None, **more: Any) -> bytes:
        worker = {"turns": Turns(0.02), "on_event": note, "check": check, "folder": tmp_path / name}
        train(tiny_llama(), chatml_tokenizer(), **settings, **worker, **more)
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    def keep(folder: Path, step: int) -> None:
        shutil.copytree(folder, tmp_path / "checkpoint")

    with pytest.raises(Draining):
        learn("drained", drain_after_two_steps, on_checkpoint=keep)
    assert steps == [1, 2]
    resumed = learn("resumed", resume_from=tmp_path / "checkpoint")
    assert steps == [1, 2, 3, 4, 5, 6]
    assert resumed == learn("never-stopped")


def test_a_layer_that_the_model_lacks_is_named(resident: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no linear layer called query; it has down_proj") as raised:
        learn_colours(resident, tmp_path, method=LoraMethod(target_modules=("query",)))
    assert raised.value.param == "method.target_modules"
