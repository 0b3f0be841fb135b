"""The golden rule of numerics for every method of fine-tuning: in turns, on a twin, as by PEFT and Trainer alone."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from tandem.specs.methods import (
    Ia3Method,
    PromptTuningMethod,
)
from tests.unit.training.interrupted import assert_resumed_equals_uninterrupted
from tests.unit.training.peft_methods import METHODS, TEXT
from tests.unit.training.plain_recipe import (
    ADAPTER,
    PEFT_WARNINGS,
    SEED,
    AllocatesRanks,
    SeedsTheFirstStep,
    arguments,
    assert_the_same,
    weights,
)
from tests.unit.training.tiny import chatml_tokenizer, colour_rows, encode_texts, run_training, tiny_gpt2, tiny_llama
from worker.training.data import Example
from worker.training.loop import TrainingOutcome

pytestmark = PEFT_WARNINGS

ONE_EPOCH = colour_rows() * 3
"""Four steps of it: at each epoch's begin a DataLoader draws from torch's generator, which Tandem's training does not
share with it, so dropout would differ from the second epoch on."""
LEARNING_RATE = 2e-4
"""Adam's first steps are as long as the learning rate, whatever the gradient: where that is all but zero, rounding
decides their direction. A mistake in what is computed still shows as hundreds of the tolerance."""
RESIDENTS = {"llama": tiny_llama, "gpt2": tiny_gpt2}


def save_base(resident: PreTrainedModel, folder: Path) -> None:
    resident.save_pretrained(folder)
    chatml_tokenizer().save_pretrained(folder)


def padded_batch(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Rows padded on the right, with an attention mask: what transformers' own collators make."""
    longest = max(len(example.input_ids) for example in examples)

    def padded(values: Sequence[int], padding: int) -> list[int]:
        return [*values, *[padding] * (longest - len(values))]

    return {
        "input_ids": torch.tensor([padded(example.input_ids, 2) for example in examples]),
        "attention_mask": torch.tensor([padded([1] * len(example.input_ids), 0) for example in examples]),
        "labels": torch.tensor([padded(example.labels, -100) for example in examples]),
    }


def train_by_the_recipe(config: PeftConfig, base: Path, scratch: Path, context: int) -> dict[str, Tensor]:
    """The adapter's weights after `get_peft_model` and `Trainer` alone: nothing of Tandem but the rows' tokens."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(SEED)
    peft_model = get_peft_model(model, config)
    settings = arguments(
        TrainingArguments,
        scratch,
        max_steps=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=LEARNING_RATE,
        label_names=["labels"],
    )
    rows = encode_texts(ONE_EPOCH, chatml_tokenizer(), context).examples
    trainer = Trainer(
        peft_model, settings, train_dataset=rows, data_collator=padded_batch, callbacks=[SeedsTheFirstStep()]
    )
    if config.peft_type == "ADALORA":
        trainer.add_callback(AllocatesRanks())
    trainer.train()
    peft_model.eval()  # PEFT would save what an LSTM with dropout happens to make
    peft_model.save_pretrained(scratch / "adapter")
    return weights(scratch / "adapter")


def recipes() -> list[Any]:
    """Every method on a Llama with grouped heads, and on GPT-2 those that name no layers of a Llama."""
    of_both = ("ia3", "prefix", "prompt")
    llama = [pytest.param("llama", name, id=f"llama-{name}") for name in METHODS]
    return [*llama, *(pytest.param("gpt2", name, id=f"gpt2-{name}") for name in of_both)]


@pytest.mark.parametrize(("family", "name"), recipes())
def test_the_adapter_is_the_plain_recipes(family: str, name: str, tmp_path: Path) -> None:
    """Same seed, rows and settings: the same weights. And the resident is bit for bit what it was."""
    method, peft_config = METHODS[name]
    save_base(RESIDENTS[family](), tmp_path / "base")
    resident = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    before = {key: tensor.clone() for key, tensor in resident.state_dict().items()}
    run_training(
        resident,
        tmp_path / "adapter",
        rows=ONE_EPOCH,
        method=method,
        seed=SEED,
        max_steps=4,
        gradient_accumulation_steps=2,
        learning_rate=LEARNING_RATE,
    )
    virtual_tokens = getattr(method, "num_virtual_tokens", 0)
    context = resident.config.max_position_embeddings - virtual_tokens
    config = peft_config(tmp_path / "base")
    expected = train_by_the_recipe(config, tmp_path / "base", tmp_path / "scratch", context)
    assert_the_same(weights(tmp_path / "adapter"), expected)
    assert resident.state_dict().keys() == before.keys()
    for key, tensor in resident.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert all(parameter.requires_grad for parameter in resident.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_the_folder_loads_in_peft_and_does_what_was_learned(name: str, tmp_path: Path) -> None:
    """On a fresh base, through PEFT's own forward: the mean loss is that of training's last evaluation."""
    method, _ = METHODS[name]
    rows = colour_rows()
    outcome = run_training(tiny_llama(), tmp_path, method=method, validation_rows=rows, max_steps=6)
    assert outcome.validation_loss_before is not None
    assert outcome.validation_loss_after is not None
    assert outcome.validation_loss_after < outcome.validation_loss_before
    assert {path.name for path in tmp_path.iterdir()} == {ADAPTER, "adapter_config.json"}
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    total, tokens = 0.0, 0
    for example in encode_texts(rows, chatml_tokenizer(), 200).examples:
        batch = padded_batch([example])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = model(**batch).logits[0, -len(labels) - 1 : -1]
        total += float(cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    assert total / tokens == pytest.approx(outcome.validation_loss_after, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        pytest.param("dora with dropout", 8, id="dora in an accumulation"),
        pytest.param("adalora", 8, id="adalora in an accumulation"),
        pytest.param("oft", 13, id="oft in an evaluation"),
        pytest.param("ia3", 13, id="ia3 in an evaluation"),
        pytest.param("prefix, projected", 8, id="prefix in an accumulation"),
        pytest.param("prompt", 13, id="prompt in an evaluation"),
        pytest.param("p-tuning, recurrent", 8, id="p-tuning in an accumulation"),
    ],
)
def test_resumed_equals_uninterrupted(name: str, call: int, tmp_path: Path) -> None:
    """What is trained is in the checkpoint, the networks behind virtual tokens too: bit for bit the same adapter."""
    exacting: dict[str, Any] = {
        "method": METHODS[name][0],
        "validation_rows": colour_rows()[3:9],
        "max_steps": 5,
        "gradient_accumulation_steps": 2,
        "eval_steps": 3,
    }

    def train(folder: Path, **options: Any) -> TrainingOutcome:
        return run_training(tiny_llama(), folder, **exacting, **options)

    assert_resumed_equals_uninterrupted(train, tmp_path, call=call)


@pytest.mark.parametrize(
    "name", ["dora", "adalora", "loha", "lokr", "vera", "oft", "ia3", "prefix", "prompt", "p-tuning"]
)
def test_an_adapter_of_a_bfloat16_resident_is_trained_in_single_precision(name: str, tmp_path: Path) -> None:
    """(IA)³'s factors begin at 1, where bfloat16 knows no step below 0.004."""
    resident = tiny_llama(dtype=torch.bfloat16)
    outcome = run_training(resident, tmp_path, method=METHODS[name][0], max_steps=8, validation_rows=colour_rows())
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}
    assert resident.dtype == torch.bfloat16
    assert outcome.validation_loss_before is not None
    assert outcome.validation_loss_after is not None
    assert outcome.validation_loss_after < outcome.validation_loss_before


def test_a_text_is_where_prompt_tuning_begins(tmp_path: Path) -> None:
    """Its tokens' embeddings, repeated to the number of virtual tokens: a step that is far too small changes none."""
    method = PromptTuningMethod(
        type="prompt-tuning", prompt_tuning_init="text", prompt_tuning_init_text=TEXT, num_virtual_tokens=7
    )
    resident = tiny_llama()
    run_training(resident, tmp_path, method=method, max_steps=1, learning_rate=1e-12)
    ids = chatml_tokenizer()(TEXT)["input_ids"]
    ids = (ids * math.ceil(7 / len(ids)))[:7]
    expected = resident.get_input_embeddings()(torch.tensor(ids)).detach()
    torch.testing.assert_close(weights(tmp_path)["prompt_embeddings"], expected)


def test_the_folder_names_its_layers_in_order(tmp_path: Path) -> None:
    """PEFT keeps names in sets, whose order is another one in each process."""
    targets = ("v_proj", "down_proj", "k_proj", "up_proj")
    method = Ia3Method(type="ia3", target_modules=targets, feedforward_modules=("up_proj", "down_proj"))
    run_training(tiny_llama(), tmp_path, method=method, max_steps=1)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(targets)
    assert config["feedforward_modules"] == ["down_proj", "up_proj"]
