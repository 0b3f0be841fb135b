"""The golden rule of numerics for every method of fine-tuning: in turns, on a twin, as by PEFT and Trainer alone."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import (
    AdaLoraConfig,
    AdaLoraModel,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from tandem.errors import Draining
from tandem.specs.methods import (
    AdaLoraMethod,
    AnyMethod,
    Ia3Method,
    LohaMethod,
    LokrMethod,
    LoraMethod,
    OftMethod,
    PrefixTuningMethod,
    PromptTuningMethod,
    PTuningMethod,
    VeraMethod,
)
from tests.unit.training.interrupted import Shelf, comparable, stop_at
from tests.unit.training.tiny import chatml_tokenizer, colour_rows, encode_texts, run_training, tiny_gpt2, tiny_llama
from worker.training.data import Example

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it loads an adapter or wraps a model.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT suspects a fault of sharding where AdaLoRA has taken all ranks of a layer,
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape:peft.utils.warning.PeftWarning"),
    # and looks for the ranks that it kept by LoRA's rule too, under which they match nothing.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning"),
]

ADAPTER = "adapter_model.safetensors"
SEED = 3
ONE_EPOCH = colour_rows() * 3
"""Four steps of it: at each epoch's begin a DataLoader draws from torch's generator, which Tandem's training does not
share with it, so dropout would differ from the second epoch on."""
LEARNING_RATE = 2e-4
"""Adam's first steps are as long as the learning rate, whatever the gradient: where that is all but zero, rounding
decides their direction. A mistake in what is computed still shows as hundreds of the tolerance."""
TEXT = "stop and go"
LORA_SETTINGS = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
VIRTUAL = {"num_virtual_tokens": 5}

METHODS: dict[str, tuple[AnyMethod, Callable[[Path], PeftConfig]]] = {
    "rslora": (LoraMethod(use_rslora=True), lambda _: LoraConfig(use_rslora=True, **LORA_SETTINGS)),
    "dora": (LoraMethod(use_dora=True), lambda _: LoraConfig(use_dora=True, **LORA_SETTINGS)),
    "dora with dropout": (
        LoraMethod(use_dora=True, dropout=0.2),
        lambda _: LoraConfig(use_dora=True, lora_dropout=0.2, **LORA_SETTINGS),
    ),
    "adalora": (
        AdaLoraMethod(type="adalora", init_r=6, target_r=2, tfinal=1, beta1=0.5),
        # PEFT's forward adds the cost of its vectors to each of the two micro steps.
        lambda _: AdaLoraConfig(
            init_r=6, target_r=2, tfinal=1, beta1=0.5, total_step=4, orth_reg_weight=0.25, **LORA_SETTINGS
        ),
    ),
    "loha": (
        LohaMethod(type="loha", r=4, alpha=6),
        lambda _: LoHaConfig(r=4, alpha=6, target_modules=["q_proj", "v_proj"]),
    ),
    "lokr": (
        LokrMethod(type="lokr", r=2, decompose_both=True, target_modules=("down_proj", "q_proj")),
        lambda _: LoKrConfig(r=2, decompose_both=True, target_modules=["down_proj", "q_proj"]),
    ),
    "vera": (
        VeraMethod(type="vera", r=16, dropout=0.1),
        lambda _: VeraConfig(r=16, vera_dropout=0.1, target_modules=["q_proj", "v_proj"]),
    ),
    "oft": (
        OftMethod(type="oft", oft_block_size=8),
        lambda _: OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, target_modules=["q_proj", "v_proj"]),
    ),
    "ia3": (Ia3Method(type="ia3"), lambda base: IA3Config(fan_in_fan_out=has_transposed_layers(base))),
    "ia3 of named layers": (
        Ia3Method(type="ia3", target_modules=("q_proj", "up_proj"), feedforward_modules=("up_proj",)),
        lambda _: IA3Config(target_modules=["q_proj", "up_proj"], feedforward_modules=["up_proj"]),
    ),
    "prefix": (PrefixTuningMethod(type="prefix-tuning", **VIRTUAL), lambda _: PrefixTuningConfig(**VIRTUAL)),
    "prefix, projected": (
        PrefixTuningMethod(type="prefix-tuning", prefix_projection=True, encoder_hidden_size=24, **VIRTUAL),
        lambda _: PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=24, **VIRTUAL),
    ),
    "prompt": (PromptTuningMethod(type="prompt-tuning", **VIRTUAL), lambda _: PromptTuningConfig(**VIRTUAL)),
    "prompt of the vocabulary": (
        PromptTuningMethod(type="prompt-tuning", prompt_tuning_init="sample_vocab", **VIRTUAL),
        lambda _: PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **VIRTUAL),
    ),
    "prompt of a text": (
        PromptTuningMethod(type="prompt-tuning", prompt_tuning_init="text", prompt_tuning_init_text=TEXT, **VIRTUAL),
        lambda base: PromptTuningConfig(
            prompt_tuning_init="TEXT", prompt_tuning_init_text=TEXT, tokenizer_name_or_path=str(base), **VIRTUAL
        ),
    ),
    "p-tuning": (PTuningMethod(type="p-tuning", **VIRTUAL), lambda _: PromptEncoderConfig(**VIRTUAL)),
    "p-tuning, recurrent": (
        PTuningMethod(
            type="p-tuning",
            encoder_reparameterization_type="LSTM",
            encoder_hidden_size=16,
            encoder_num_layers=2,
            encoder_dropout=0.2,
            **VIRTUAL,
        ),
        lambda _: PromptEncoderConfig(
            encoder_reparameterization_type="LSTM",
            encoder_hidden_size=16,
            encoder_num_layers=2,
            encoder_dropout=0.2,
            **VIRTUAL,
        ),
    ),
}
"""Each method, and what PEFT's own user writes for it, given the folder of the base."""
RESIDENTS = {"llama": tiny_llama, "gpt2": tiny_gpt2}


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / ADAPTER)


def save_base(resident: PreTrainedModel, folder: Path) -> None:
    resident.save_pretrained(folder)
    chatml_tokenizer().save_pretrained(folder)


def has_transposed_layers(base: Path) -> bool:
    """PEFT asks its users to know this of GPT-2."""
    return bool(json.loads((base / "config.json").read_text())["model_type"] == "gpt2")


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


class SeedsTheFirstStep(TrainerCallback):
    """Trainer seeds torch, and then its DataLoader draws a number before the first dropout does. Tandem's training
    has a random state of its own, which the DataLoader does not reach."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step == 0:
            torch.manual_seed(SEED)


class AllocatesRanks(TrainerCallback):
    """PEFT's documentation asks its users for this call after each optimizer step."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, *_: Any, model: PeftModel | None = None, **__: Any
    ) -> None:
        assert model is not None
        cast("AdaLoraModel", model.base_model).update_and_allocate(state.global_step + 1)


def train_by_the_recipe(config: PeftConfig, base: Path, scratch: Path, context: int) -> dict[str, Tensor]:
    """The adapter's weights after `get_peft_model` and `Trainer` alone: nothing of Tandem but the rows' tokens."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(SEED)
    peft_model = get_peft_model(model, config)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=LEARNING_RATE,
        seed=SEED,
        data_seed=SEED,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        label_names=["labels"],
    )
    rows = encode_texts(ONE_EPOCH, chatml_tokenizer(), context).examples
    trainer = Trainer(
        peft_model, arguments, train_dataset=rows, data_collator=padded_batch, callbacks=[SeedsTheFirstStep()]
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
    found = weights(tmp_path / "adapter")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0.0, atol=1e-6, msg=lambda text, key=key: f"{key} {text}")
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
    whole = run_training(tiny_llama(), tmp_path / "whole", **exacting)
    shelf = Shelf(tmp_path / "shelf")
    with pytest.raises(Draining):
        run_training(tiny_llama(), tmp_path / "part", check=stop_at(call), on_checkpoint=shelf, **exacting)
    assert shelf.steps
    torch.rand(100)  # another worker's generator stands elsewhere
    resumed = run_training(tiny_llama(), tmp_path / "resumed", resume_from=shelf.last, **exacting)
    assert comparable(resumed) == comparable(whole)
    for file in (ADAPTER, "adapter_config.json"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


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
