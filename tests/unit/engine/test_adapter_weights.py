"""Reading a PEFT folder: what is exact, and what is refused in which words."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, PreTrainedModel

from tandem.errors import AdapterMismatch, InvalidRequest
from tests.unit.engine.adapter_folders import save_adapter
from tests.unit.engine.tiny_models import FAMILIES, SIZES, build_model
from worker.engine.adapters.bank import AdapterBank
from worker.engine.adapters.peft_folder import CONFIG_FILE, WEIGHTS_FILE
from worker.engine.adapters.weights import read_adapter

# peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LAYER = "model.layers.0.self_attn.q_proj"
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of rank 4 and alpha 6 for q_proj."""
    save_adapter(build_model(FAMILIES["llama"]()), tmp_path, seed=1, r=4, lora_alpha=6, target_modules=["q_proj"])
    return tmp_path


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build_model(FAMILIES["llama"]())


@pytest.fixture
def ia3_folder(tmp_path: Path) -> Path:
    """An IA3 of down_proj's inputs and k_proj's outputs."""
    layers = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    save_adapter(build_model(FAMILIES["llama"]()), tmp_path, seed=1, method=IA3Config, **layers)
    return tmp_path


@pytest.fixture
def adalora_folder(tmp_path: Path) -> Path:
    """An AdaLoRA of q_proj that began with rank 3."""
    sizes = {"init_r": 3, "target_r": 2, "total_step": 9, "lora_alpha": 8}
    save_adapter(
        build_model(FAMILIES["llama"]()), tmp_path, seed=1, method=AdaLoraConfig, target_modules=["q_proj"], **sizes
    )
    return tmp_path


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Set A or B of layer 0's q_proj, or remove it."""
    weights = load_file(folder / WEIGHTS_FILE)
    for letter, tensor in tensors.items():
        if tensor is None:
            del weights[Q.format(letter)]
        else:
            weights[Q.format(letter)] = tensor
    save_file(weights, folder / WEIGHTS_FILE)


def test_the_pairs_stand_under_the_paths_of_their_layers(folder: Path, model: PreTrainedModel) -> None:
    adapter = read_adapter("mine", folder, model)

    assert (adapter.id, adapter.rank) == ("mine", 4)
    assert sorted(adapter.modules) == [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
    update, weights = adapter.modules[LAYER], load_file(folder / WEIGHTS_FILE)
    assert update.a is not None
    assert update.b is not None
    assert torch.equal(update.a, weights[Q.format("A")])
    assert torch.equal(update.b, weights[Q.format("B")].t() * 1.5), "alpha 6 over rank 4"


def test_rank_stabilized_scaling_divides_by_the_root_of_the_rank(folder: Path, model: PreTrainedModel) -> None:
    change_config(folder, use_rslora=True, lora_alpha=5)
    update = read_adapter("mine", folder, model).modules[LAYER]

    assert update.b is not None
    assert torch.equal(update.b, load_file(folder / WEIGHTS_FILE)[Q.format("B")].t() * (5 / math.sqrt(4)))


def test_an_update_is_ready_to_be_copied(folder: Path) -> None:
    """In the layer's dtype and contiguous: the engine's thread, which copies it, converts nothing."""
    update = read_adapter("mine", folder, build_model(FAMILIES["llama"]()).to(torch.bfloat16)).modules[LAYER]

    assert update.a is not None
    assert update.b is not None
    assert update.a.dtype is update.b.dtype is torch.bfloat16
    assert update.a.is_contiguous()
    assert update.b.is_contiguous()


def test_weights_that_overflow_the_models_dtype_are_refused(folder: Path) -> None:
    """An infinite B would reach every row of a batch: 0 * inf is NaN."""
    change_weights(folder, B=torch.full((64, 4), 6e4))
    with pytest.raises(InvalidRequest, match=rf"its weights of {LAYER} overflow torch.float16"):
        read_adapter("mine", folder, build_model(FAMILIES["llama"]()).half())


def test_ia3_scales_what_its_vectors_shapes_say(ia3_folder: Path, model: PreTrainedModel) -> None:
    """[1, in_features] are a feed-forward layer's inputs, [out_features, 1] another layer's outputs."""
    modules = read_adapter("mine", ia3_folder, model).modules
    inputs, outputs = modules["model.layers.1.mlp.down_proj"], modules["model.layers.1.self_attn.k_proj"]

    assert inputs.input_scale is not None
    assert (inputs.input_scale.shape, inputs.output_scale, inputs.rank) == ((128,), None, 0)
    assert outputs.output_scale is not None
    assert (outputs.output_scale.shape, outputs.input_scale, outputs.output_shift) == ((32,), None, None)


@pytest.mark.parametrize(
    ("shape", "error", "words"),
    [
        ((128, 2), InvalidRequest, r"down_proj needs an ia3_l of shape \(1, in_features\) or \(out_features, 1\)"),
        ((128,), InvalidRequest, "needs an ia3_l"),
        ((1, 64), AdapterMismatch, "its update of .*down_proj has 64 in_features, the model's layer has 128"),
        ((128, 1), AdapterMismatch, "its update of .*down_proj has 128 out_features, the model's layer has 64"),
    ],
    ids=str,
)
def test_an_ia3_vector_that_does_not_fit_is_named(
    shape: tuple[int, ...], error: type[InvalidRequest], words: str, ia3_folder: Path, model: PreTrainedModel
) -> None:
    key = "base_model.model.model.layers.1.mlp.down_proj.ia3_l"
    weights = load_file(ia3_folder / WEIGHTS_FILE)
    save_file(weights | {key: torch.ones(shape)}, ia3_folder / WEIGHTS_FILE)

    with pytest.raises(error, match=words):
        read_adapter("mine", ia3_folder, model)


def test_a_magnitude_without_dora_is_refused(folder: Path, model: PreTrainedModel) -> None:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    save_file(load_file(folder / WEIGHTS_FILE) | {key: torch.ones(64)}, folder / WEIGHTS_FILE)
    with pytest.raises(InvalidRequest, match=rf"use_dora is set to False, but {LAYER} has a magnitude vector"):
        read_adapter("mine", folder, model)
    change_config(folder, use_dora=True)
    with pytest.raises(
        InvalidRequest, match=r"use_dora is set to True, but model.layers.1.* has no magnitude vector"
    ):
        read_adapter("mine", folder, model)
    save_file(load_file(folder / WEIGHTS_FILE) | {key: torch.ones(32)}, folder / WEIGHTS_FILE)
    with pytest.raises(AdapterMismatch, match=f"its update of {LAYER} has 32 out_features"):
        read_adapter("mine", folder, model)


@pytest.mark.parametrize(
    ("fields", "tensors", "words"),
    [
        ({"lora_alpha": 0}, {}, "lora_alpha is 0; AdaLoRA is served with one above 0"),
        ({"init_r": None}, {}, "init_r is None; it must be the rank that the training began with"),
        ({"use_rslora": True}, {}, "use_rslora is set to True, which is not served"),
        ({}, {"E": torch.ones(2, 1)}, r"needs a lora_E of shape \(3, 1\), one value for each row of lora_A"),
        ({}, {"B": torch.ones(64, 2)}, "has rank 3, lora_B 2; they must be equal"),
    ],
    ids=str,
)
def test_an_adalora_that_does_not_fit_is_named(
    fields: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    words: str,
    adalora_folder: Path,
    model: PreTrainedModel,
) -> None:
    change_config(adalora_folder, **fields)
    keys = {f"base_model.model.{LAYER}.lora_{letter}": tensor for letter, tensor in tensors.items()}
    save_file(load_file(adalora_folder / WEIGHTS_FILE) | keys, adalora_folder / WEIGHTS_FILE)

    with pytest.raises(InvalidRequest, match=words):
        read_adapter("mine", adalora_folder, model)


def test_the_bank_names_the_adapter_and_the_layer_that_does_not_fit(folder: Path, model: PreTrainedModel) -> None:
    """The engine asks it once more: an adapter may have been read for another model."""
    adapter = read_adapter("mine", folder, model)
    bank = AdapterBank(slots=2, rank=8)
    bank.take_over(build_model(LlamaConfig(**SIZES | {"hidden_size": 32})), head=None)

    with pytest.raises(AdapterMismatch, match=f"'mine' .* its update of {LAYER} has 64 in_features, .* has 32"):
        bank.check(adapter)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "HRA"}, "peft_type is 'HRA'; LORA, ADALORA, LOHA, LOKR, VERA, IA3, .* are served"),
        ({"peft_type": "BOFT"}, "peft_type is 'BOFT'"),
        ({"peft_type": ["LORA"]}, "peft_type is \\['LORA'\\]"),
        ({"use_dora": True}, "use_dora is set to True"),
        ({"bias": "all"}, "bias is set to 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"a_field_of_the_future": 3}, "a_field_of_the_future"),
        ({"r": 5}, "r is 5"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
    ],
    ids=str,
)
def test_a_setting_that_is_not_served_is_named(
    fields: dict[str, Any], words: str, folder: Path, model: PreTrainedModel
) -> None:
    change_config(folder, **fields)

    with pytest.raises(InvalidRequest, match=words) as refused:
        read_adapter("mine", folder, model)
    assert refused.value.param == "adapter"
    assert "'mine'" in refused.value.message


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"A": None}, "only one of lora_A and lora_B"),
        ({"A": torch.full((4, 64), math.nan)}, "not finite"),
        ({"B": torch.full((64, 4), math.inf)}, "not finite"),
        ({"A": torch.zeros(4)}, "must be matrices"),
        ({"magnitude_vector": torch.zeros(64)}, "unknown key .*lora_magnitude_vector"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_are_no_lora_are_named(
    tensors: dict[str, torch.Tensor | None], words: str, folder: Path, model: PreTrainedModel
) -> None:
    change_weights(folder, **tensors)

    with pytest.raises(InvalidRequest, match=words):
        read_adapter("mine", folder, model)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (CONFIG_FILE, None, "adapter_config.json cannot be read"),
        (CONFIG_FILE, b"{", "adapter_config.json cannot be read"),
        (CONFIG_FILE, b"\xff\xfe", "adapter_config.json cannot be read"),
        (CONFIG_FILE, b"[]", "not a JSON object"),
        (CONFIG_FILE, b'{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "rank_pattern": {"(": 1}}', "rank_pattern"),
        (CONFIG_FILE, b'{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "rank_pattern": [1]}', "rank_pattern"),
        (WEIGHTS_FILE, None, "adapter_model.safetensors cannot be read"),
        (WEIGHTS_FILE, b"not safetensors", "adapter_model.safetensors cannot be read"),
    ],
    ids=lambda value: "" if isinstance(value, str) else repr(value)[:16],
)
def test_a_file_that_cannot_be_read_is_named(
    name: str, content: bytes | None, words: str, folder: Path, model: PreTrainedModel
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)

    with pytest.raises(InvalidRequest, match=words):
        read_adapter("mine", folder, model)


def test_an_adapter_of_another_base_is_refused(folder: Path) -> None:
    other = build_model(FAMILIES["llama"]().__class__(**SIZES | {"hidden_size": 32}))
    with pytest.raises(AdapterMismatch, match="has 64 in_features, the model's layer has 32"):
        read_adapter("mine", folder, other)
    with pytest.raises(AdapterMismatch, match=r"layers\.0\.self_attn\.q_proj, which is no linear layer"):
        read_adapter("mine", folder, build_model(FAMILIES["phi3"]()))


def test_a_rank_above_the_limit_is_refused(folder: Path, model: PreTrainedModel) -> None:
    with pytest.raises(InvalidRequest, match=r"rank 4 of .* above the limit of 3"):
        read_adapter("mine", folder, model, rank_limit=3)


# peft tells that it saves the head's base weight beside its adapter, which is what the test is about.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_a_head_of_another_base_is_refused(tmp_path: Path, model: PreTrainedModel) -> None:
    other = build_model(FAMILIES["llama"](), seed=5)
    save_adapter(other, tmp_path, seed=1, r=4, target_modules=["lm_head"])

    assert read_adapter("mine", tmp_path, build_model(FAMILIES["llama"](), seed=5)).modules.keys() == {"lm_head"}
    with pytest.raises(AdapterMismatch, match="base weight of its own for lm_head"):
        read_adapter("mine", tmp_path, model)
