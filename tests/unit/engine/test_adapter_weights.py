"""Reading a PEFT folder: what is exact, and what is refused in which words."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tandem.errors import AdapterMismatch, InvalidRequest
from tests.unit.engine.adapter_folders import save_adapter
from tests.unit.engine.tiny_models import FAMILIES, SIZES, build_model
from worker.engine.adapter_weights import CONFIG_FILE, WEIGHTS_FILE, read_adapter

# peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of rank 4 and alpha 6 for q_proj."""
    save_adapter(build_model(FAMILIES["llama"]()), tmp_path, seed=1, r=4, lora_alpha=6, target_modules=["q_proj"])
    return tmp_path


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(FAMILIES["llama"]())


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


def test_the_pairs_stand_under_the_paths_of_their_layers(folder: Path, model: torch.nn.Module) -> None:
    adapter = read_adapter("mine", folder, model)

    assert (adapter.id, adapter.rank) == ("mine", 4)
    assert sorted(adapter.modules) == [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
    pair = adapter.modules["model.layers.0.self_attn.q_proj"]
    assert torch.equal(pair.a, load_file(folder / WEIGHTS_FILE)[Q.format("A")])
    assert torch.equal(pair.b, load_file(folder / WEIGHTS_FILE)[Q.format("B")])
    assert pair.scaling == 1.5


def test_rank_stabilized_scaling_divides_by_the_root_of_the_rank(folder: Path, model: torch.nn.Module) -> None:
    change_config(folder, use_rslora=True, lora_alpha=5)

    assert read_adapter("mine", folder, model).modules["model.layers.0.self_attn.q_proj"].scaling == 5 / math.sqrt(4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is set to True"),
        ({"bias": "all"}, "bias is set to 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
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
    fields: dict[str, Any], words: str, folder: Path, model: torch.nn.Module
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
    tensors: dict[str, torch.Tensor | None], words: str, folder: Path, model: torch.nn.Module
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
    name: str, content: bytes | None, words: str, folder: Path, model: torch.nn.Module
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)

    with pytest.raises(InvalidRequest, match=words):
        read_adapter("mine", folder, model)


def test_an_adapter_of_another_base_is_refused(folder: Path) -> None:
    other = build_model(FAMILIES["llama"]().__class__(**SIZES | {"hidden_size": 32}))
    with pytest.raises(AdapterMismatch, match="from 64 to 64 features, the model's layer from 32 to 32"):
        read_adapter("mine", folder, other)
    with pytest.raises(AdapterMismatch, match=r"layers\.0\.self_attn\.q_proj, which is no linear layer"):
        read_adapter("mine", folder, build_model(FAMILIES["phi3"]()))


def test_a_rank_above_the_limit_is_refused(folder: Path, model: torch.nn.Module) -> None:
    with pytest.raises(InvalidRequest, match=r"rank 4 of .* above the limit of 3"):
        read_adapter("mine", folder, model, rank_limit=3)


# peft tells that it saves the head's base weight beside its adapter, which is what the test is about.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_a_head_of_another_base_is_refused(tmp_path: Path, model: torch.nn.Module) -> None:
    other = build_model(FAMILIES["llama"](), seed=5)
    save_adapter(other, tmp_path, seed=1, r=4, target_modules=["lm_head"])

    assert read_adapter("mine", tmp_path, build_model(FAMILIES["llama"](), seed=5)).modules.keys() == {"lm_head"}
    with pytest.raises(AdapterMismatch, match="base weight of its own for lm_head"):
        read_adapter("mine", tmp_path, model)
