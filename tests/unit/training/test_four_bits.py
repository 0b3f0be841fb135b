"""QLoRA: a resident in 4 bits serves and trains, and its weights stay as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from tandem.catalogue import CatalogueEntry
from tandem.errors import InvalidModel, InvalidRequest
from tandem.settings import WorkerSettings
from tandem.specs import GenerationParameters, LoraMethod
from tandem.specs.methods import AnyMethod, Ia3Method
from tests.unit.training.tiny import chatml_tokenizer, run_training, tiny_llama
from worker import four_bit
from worker.engine.adapters.weights import read_adapter
from worker.engine.sequence import Sequence
from worker.loading import Loader
from worker.resident_model import ResidentModel
from worker.stall import StallWatch
from worker.training.turns import Turns

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""PEFT 0.21 reads a property that transformers 5.23 has renamed, when an adapter is loaded for comparison."""

PROMPT = chatml_tokenizer().encode("green means ")
WAIT_SECONDS = 30
RATE = 2e-2
"""A learning rate that suits a tiny model."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(made)
    chatml_tokenizer().save_pretrained(made)
    return made


def entry(folder: Path, dtype: str = "float32", tasks: tuple[str, ...] = ("text-generation",)) -> CatalogueEntry:
    return CatalogueEntry.model_validate(
        {"name": "tiny", "tasks": tasks, "folder": folder, "dtype": dtype, "quantization": "nf4"}
    )


def load(folder: Path, dtype: str = "float32") -> ResidentModel:
    settings = WorkerSettings(sequence_slots=2, slot_tokens=64)
    loader = Loader(settings, torch.device("cpu"), Turns(0.0), StallWatch(60.0, pytest.fail))
    return loader.load(entry(folder, dtype), "text-generation")


def answer(resident: ResidentModel, adapter: Path | None = None) -> list[int]:
    """What the engine makes of PROMPT, greedily."""
    assert resident.engine is not None
    weights = None if adapter is None else read_adapter("adapter", adapter, resident.model)
    sequence = Sequence(PROMPT, GenerationParameters(max_new_tokens=8), adapter=weights)
    resident.engine.submit(sequence)
    return list(sequence.future.result(WAIT_SECONDS).token_ids)


def library_answer(folder: Path, adapter: Path | None = None) -> list[int]:
    """What the library's generate() makes of it, with the same model and PEFT."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **four_bit.load_options(torch.float32, torch.device("cpu"))
    )
    four_bit.keep_layout(model)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    tokens = model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, pad_token_id=2)
    return list(tokens[0, len(PROMPT) :].tolist())


def test_a_model_in_4_bits_serves_and_trains(folder: Path, tmp_path: Path) -> None:
    """The engine answers as generate() does, before and with the adapter that was trained over the same weights;
    these, and their scales, stay bit for bit what they were."""
    resident = load(folder)
    assert resident.engine is not None, "not by generate()"
    layer: Any = resident.model.get_submodule("model.layers.0.mlp.up_proj")
    assert layer.weight.dtype == torch.uint8
    weights, scales = layer.weight.clone(), layer.weight.quant_state.absmax.clone()
    base = answer(resident)
    assert base == library_answer(folder)

    method = LoraMethod(r=4, target_modules=("q_proj", "v_proj", "up_proj", "down_proj"))
    outcome = run_training(resident.model, tmp_path, method=method, learning_rate=RATE, max_steps=10, logging_steps=1)
    losses = [event["loss"] for event in outcome.history]
    assert losses[-1] < losses[0] - 0.5
    assert torch.equal(layer.weight, weights)
    assert torch.equal(layer.weight.quant_state.absmax, scales)

    trained = answer(resident, tmp_path)
    assert trained == library_answer(folder, tmp_path)
    assert trained != base == answer(resident)
    resident.close()


def test_in_bfloat16_it_trains_after_it_has_served(folder: Path, tmp_path: Path) -> None:
    """bitsandbytes would have put the weights into an order for serving alone, where nothing is learned."""
    resident = load(folder, "bfloat16")
    answer(resident)
    outcome = run_training(resident.model, tmp_path, learning_rate=RATE, max_steps=10, logging_steps=1)
    losses = [event["loss"] for event in outcome.history]
    assert losses[-1] < losses[0] - 0.5
    resident.close()


@pytest.mark.parametrize("method", [LoraMethod(use_dora=True), Ia3Method(type="ia3")], ids=["dora", "ia3"])
def test_other_methods_are_refused(method: AnyMethod, folder: Path, tmp_path: Path) -> None:
    resident = load(folder)
    with pytest.raises(InvalidRequest, match="only `lora` without `use_dora`") as raised:
        run_training(resident.model, tmp_path, method=method)
    assert raised.value.param == "method.type"
    resident.close()


def test_without_bitsandbytes_the_model_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bit, "LIBRARY", "no_such_library")
    with pytest.raises(InvalidModel, match="'nf4', which needs bitsandbytes on the worker: install the extra"):
        load(folder)


def test_other_tasks_are_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match="only task is text-generation"):
        entry(folder, tasks=("feature-extraction",))
