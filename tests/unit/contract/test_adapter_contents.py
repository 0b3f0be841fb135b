"""What is read of a PEFT folder without torch: what PEFT itself writes, and every fault by its name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tandem.adapter_contents import VirtualTokens, read_contents
from tandem.adapter_layers import LayerChange
from tandem.errors import InvalidRequest, UnsupportedTask
from tandem.specs import peft_config
from tests.unit.contract.peft_folders import LORA_CONFIG, LORA_SHAPES, Q_PROJ, adapter_files, write
from worker.engine.adapters.peft_folder import read_config

# PEFT asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WIDTH, INNER, KEYS = 16, 24, 8
Q, K, DOWN = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def saved(model: PreTrainedModel, config: PeftConfig, folder: Path) -> Path:
    """The folder that PEFT makes of a model with such an adapter."""
    with torch.random.fork_rng():
        get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (LoraConfig(r=4, target_modules=["q_proj"]), {Q: LayerChange(WIDTH, WIDTH, 4)}),
        (
            LoraConfig(r=4, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2}),
            {Q: LayerChange(WIDTH, WIDTH, 4), DOWN: LayerChange(INNER, WIDTH, 2)},
        ),
        (LoraConfig(r=4, use_dora=True, target_modules=["k_proj"]), {K: LayerChange(WIDTH, KEYS, 4)}),
        (
            AdaLoraConfig(init_r=6, target_r=3, total_step=9, target_modules=["k_proj"]),
            {K: LayerChange(WIDTH, KEYS, 6)},
        ),
        (LoHaConfig(r=3, target_modules=["k_proj"]), {K: LayerChange(WIDTH, KEYS, 3)}),
        (LoKrConfig(r=1, target_modules=["down_proj"]), {DOWN: LayerChange(INNER, WIDTH, 1)}),
        (LoKrConfig(r=9, target_modules=["k_proj"]), {K: LayerChange(WIDTH, KEYS, 0)}),
        (VeraConfig(r=5, target_modules=["k_proj"]), {K: LayerChange(None, KEYS, 5)}),
        (OFTConfig(r=0, oft_block_size=4, target_modules=["k_proj"]), {K: LayerChange(None, None)}),
        (
            IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
            {K: LayerChange(None, KEYS), DOWN: LayerChange(INNER, None)},
        ),
    ],
    ids=lambda value: value.peft_type.value if isinstance(value, PeftConfig) else "",
)
def test_what_changes_layers_says_which_and_how(
    config: PeftConfig, layers: dict[str, LayerChange], tmp_path: Path
) -> None:
    config.task_type = "CAUSAL_LM"
    contents = read_contents(saved(llama(), config, tmp_path))
    assert (contents.peft_type, contents.task) == (config.peft_type.value, "text-generation")
    assert contents.layers == layers
    assert contents.rank == (max(layer.rank for layer in layers.values()) or None)
    assert contents.target_modules == tuple(sorted(path.rpartition(".")[2] for path in layers))
    assert contents.virtual_tokens is None


@pytest.mark.parametrize(
    ("config", "width"),
    [
        (PrefixTuningConfig(num_virtual_tokens=3), 2 * KEYS),
        (PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True), 2 * KEYS),
        (PromptTuningConfig(num_virtual_tokens=3), WIDTH),
        (PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=5), WIDTH),
    ],
    ids=lambda value: value.peft_type.value if isinstance(value, PeftConfig) else "",
)
def test_what_comes_before_the_text_says_how_long_and_wide_it_is(
    config: PeftConfig, width: int, tmp_path: Path
) -> None:
    config.task_type = "CAUSAL_LM"
    contents = read_contents(saved(llama(), config, tmp_path))
    assert contents.virtual_tokens == VirtualTokens(3, width)
    assert (contents.peft_type, contents.rank, contents.layers) == (config.peft_type.value, None, {})


def test_gpt2s_layers_are_told_from_inputs_to_outputs(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=WIDTH, n_layer=1, n_head=2))
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    contents = read_contents(saved(model, config, tmp_path))
    assert contents.layers == {"transformer.h.0.attn.c_attn": LayerChange(WIDTH, 3 * WIDTH, 2)}


def test_a_head_brings_its_labels_and_its_models_type(tmp_path: Path) -> None:
    labels = {0: "bad", 1: "good", 2: "so-so"}
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=32,
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            id2label=labels,
        )
    )
    saved(model, LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"), tmp_path)
    with pytest.raises(InvalidRequest, match=r"needs config\.json beside adapter_config\.json"):
        read_contents(tmp_path)
    model.config.save_pretrained(tmp_path)
    contents = read_contents(tmp_path)
    assert (contents.task, contents.labels) == ("text-classification", ("bad", "good", "so-so"))
    assert contents.model_type == "bert"
    assert set(contents.layers) == {"bert.encoder.layer.0.attention.self.query"}


IA3_CONFIG = {"peft_type": "IA3", "task_type": "CAUSAL_LM"}
A, B = f"{Q_PROJ}.lora_A.weight", f"{Q_PROJ}.lora_B.weight"


def prompt(**changes: Any) -> dict[str, Any]:
    return {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3} | changes


@pytest.mark.parametrize(
    ("config", "shapes", "reason"),
    [
        (LORA_CONFIG | {"peft_type": "HRA"}, LORA_SHAPES, "by adapter_config.json, peft_type is 'HRA'; LORA"),
        (LORA_CONFIG | {"peft_type": ["LORA"]}, LORA_SHAPES, r"peft_type is \['LORA'\]"),
        (LORA_CONFIG | {"lora_alpha": "8"}, LORA_SHAPES, "lora_alpha in adapter_config.json is '8'"),
        (LORA_CONFIG | {"lora_alpha": float("nan")}, LORA_SHAPES, "lora_alpha in adapter_config.json is nan"),
        (LORA_CONFIG | {"r": 8}, LORA_SHAPES, "r in adapter_config.json is 8, but .*q_proj has rank 4"),
        (LORA_CONFIG, {}, "holds no weights of a LORA adapter"),
        (LORA_CONFIG, LORA_SHAPES | {"other": (1,)}, "has the unknown key other"),
        (LORA_CONFIG, LORA_SHAPES | {"base_model.model.lm_head.weight": (32, 16)}, "unknown key base_model.model.lm"),
        (LORA_CONFIG, {A: (4, 16)}, r"q_proj has lora_A\.weight; a LORA adapter has lora_A\.weight, lora_B\.weight"),
        (LORA_CONFIG, {A: (4, 16), B: (16, 3)}, r"have the shapes \(4, 16\) and \(16, 3\), which do not fit"),
        (LORA_CONFIG, {A: (64,), B: (64,)}, "which do not fit"),
        (LORA_CONFIG, {A: (0, 16), B: (16, 0)}, "which do not fit"),
        (LORA_CONFIG | {"r": 257}, {A: (257, 16), B: (16, 257)}, "rank 257 of .*q_proj is above the limit of 256"),
        (
            LORA_CONFIG,
            LORA_SHAPES | {f"{Q_PROJ}.lora_magnitude_vector": (4,)},
            r"lora_magnitude_vector of .*q_proj has the shape \(4,\); it must be \(16,\)",
        ),
        (IA3_CONFIG, LORA_SHAPES, "a IA3 adapter has ia3_l for each layer"),
        (IA3_CONFIG, {f"{Q_PROJ}.ia3_l": (2, 16)}, r"it must be \[1, in\] or \[out, 1\]"),
        (prompt(), LORA_SHAPES, "must hold prompt_embeddings and nothing else; it holds base_model"),
        (prompt(num_virtual_tokens=4), {"prompt_embeddings": (3, 16)}, "says that it has 4 rows"),
        (prompt(num_virtual_tokens=None), {"prompt_embeddings": (3, 16)}, "num_virtual_tokens is None"),
        (prompt(num_virtual_tokens=513), {"prompt_embeddings": (513, 16)}, "it must be from 1 to 512"),
        (
            prompt(task_type="SEQ_CLS"),
            {"prompt_embeddings": (3, 16)},
            "peft_type is 'PROMPT_TUNING'; LORA, ADALORA, LOHA, LOKR, VERA, IA3 are served",
        ),
    ],
)
def test_a_fault_is_refused_by_its_name(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        read_contents(write(tmp_path, adapter_files(config, shapes)))
    assert refused.value.param == "file"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"adapter_config.json": b"{"}, "adapter_config.json is not JSON"),
        ({"adapter_config.json": b"[" * 100_000}, "adapter_config.json is not JSON"),
        ({"adapter_config.json": b"[]"}, "adapter_config.json is not a JSON object"),
        ({"adapter_model.safetensors": b"\x80\x02}q\0."}, "adapter_model.safetensors is no safetensors file"),
        ({"config.json": b"1"}, "config.json is not a JSON object"),
        ({"config.json": b"{}"}, "model_type in config.json is None"),
        ({"config.json": b'{"model_type": "bert", "id2label": {"0": "a", "2": "b"}}'}, "must name the labels 0, 1"),
        ({"config.json": b'{"model_type": "bert", "id2label": {"0": 1}}'}, "must name the labels 0, 1"),
        ({"config.json": b'{"model_type": "bert", "id2label": ["a"]}'}, "must name the labels 0, 1"),
    ],
)
def test_a_broken_file_is_refused_by_its_name(files: dict[str, bytes], reason: str, tmp_path: Path) -> None:
    head = LORA_CONFIG | {"task_type": "SEQ_CLS"}
    with pytest.raises(InvalidRequest, match=reason):
        read_contents(write(tmp_path, adapter_files(head) | files))


def test_weights_must_be_floating_point_numbers(tmp_path: Path) -> None:
    files = adapter_files()
    files["adapter_model.safetensors"] = files["adapter_model.safetensors"].replace(b'"F32"', b'"I32"')
    with pytest.raises(InvalidRequest, match="has the dtype I32; it must be one of"):
        read_contents(write(tmp_path, files))


@pytest.mark.parametrize("task_type", ["IMAGE_CLS", 7])
def test_a_task_that_nobody_serves_is_refused(task_type: object, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTask, match="served are CAUSAL_LM, SEQ_CLS, TOKEN_CLS, QUESTION_ANS, SEQ_2_SEQ_LM"):
        read_contents(write(tmp_path, adapter_files(LORA_CONFIG | {"task_type": task_type})))


def test_an_encoder_decoders_adapter_is_told_by_its_task_and_has_no_virtual_tokens(tmp_path: Path) -> None:
    """Every method that updates layers is served, rotations too, and no head is looked for."""
    contents = read_contents(write(tmp_path / "lora", adapter_files(LORA_CONFIG | {"task_type": "SEQ_2_SEQ_LM"})))
    assert (contents.task, contents.labels, contents.model_type) == ("text2text-generation", (), None)
    rotations = OFTConfig(r=0, oft_block_size=4, target_modules=["k_proj"], task_type="SEQ_2_SEQ_LM")
    assert read_contents(saved(llama(), rotations, tmp_path / "oft")).task == "text2text-generation"
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "task_type": "SEQ_2_SEQ_LM"}
    with pytest.raises(InvalidRequest, match="peft_type is 'PROMPT_TUNING'"):
        read_contents(write(tmp_path / "prompt", adapter_files(config)))


def test_a_config_without_a_task_is_a_language_models(tmp_path: Path) -> None:
    config = json.loads(json.dumps(LORA_CONFIG | {"task_type": None}))
    assert read_contents(write(tmp_path, adapter_files(config))).task == "text-generation"


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "HRA"},
        {"lora_bias": True},
        {"use_qalora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"target_parameters": ["experts.gate_up_proj"]},
        {"an_option_of_the_future": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_option_that_the_worker_refuses_is_refused_before_it_is_published(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = write(tmp_path, adapter_files(LORA_CONFIG | changes))
    with pytest.raises(InvalidRequest, match=next(iter(changes))):
        read_config("ft:a", folder, methods={**peft_config.LINEAR_METHODS, **peft_config.PREFIX_METHODS})
    with pytest.raises(InvalidRequest, match=next(iter(changes))):
        read_contents(folder)
