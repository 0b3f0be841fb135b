"""Reading virtual tokens: prefix tuning, prompt tuning and p-tuning as PEFT saves them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, PreTrainedModel

from tandem.errors import AdapterMismatch, InvalidRequest
from tandem.specs.peft_config import CONFIG_FILE, WEIGHTS_FILE
from tests.unit.engine.adapter_folders import save_adapter
from tests.unit.engine.tiny_models import FAMILIES, SIZES, build_model
from worker.engine.adapters.prefix import PrefixKV, VirtualTokens
from worker.engine.adapters.weights import read_adapter

# peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LENGTH = 5


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build_model(FAMILIES["llama"]())


@pytest.fixture
def prefix_folder(tmp_path: Path) -> Path:
    save_adapter(
        build_model(FAMILIES["llama"]()), tmp_path, seed=1, method=PrefixTuningConfig, num_virtual_tokens=LENGTH
    )
    return tmp_path


@pytest.fixture
def prompt_folder(tmp_path: Path) -> Path:
    save_adapter(
        build_model(FAMILIES["llama"]()), tmp_path, seed=1, method=PromptTuningConfig, num_virtual_tokens=LENGTH
    )
    return tmp_path


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, **tensors: torch.Tensor) -> None:
    save_file(tensors, folder / WEIGHTS_FILE)


def test_prefix_tuning_gives_what_peft_puts_into_the_cache(tmp_path: Path, model: PreTrainedModel) -> None:
    """Keys and values of every layer, with the model's 2 key/value heads, not its 4 query heads."""
    trained = save_adapter(
        build_model(FAMILIES["llama"]()), tmp_path, seed=1, method=PrefixTuningConfig, num_virtual_tokens=LENGTH
    )
    adapter = read_adapter("mine", tmp_path, model)
    cache = trained.get_prompt(batch_size=1)

    assert isinstance(adapter.prefix, PrefixKV)
    assert (adapter.modules, adapter.rank, adapter.prefix.length) == ({}, 0, LENGTH)
    assert adapter.prefix.keys.shape == adapter.prefix.values.shape == (3, 2, LENGTH, 16)
    assert len(cache.layers) == 3
    for layer, held in enumerate(cache.layers):
        assert torch.equal(adapter.prefix.keys[layer], held.keys[0])
        assert torch.equal(adapter.prefix.values[layer], held.values[0])


def test_a_projected_prefix_is_read_as_it_came_out(tmp_path: Path, model: PreTrainedModel) -> None:
    """PEFT runs the projection's two layers when it saves: what is read needs them no more."""
    trained = save_adapter(
        build_model(FAMILIES["llama"]()),
        tmp_path,
        seed=1,
        method=PrefixTuningConfig,
        num_virtual_tokens=LENGTH,
        prefix_projection=True,
        encoder_hidden_size=24,
    )
    prefix = read_adapter("mine", tmp_path, model).prefix
    cache = trained.get_prompt(batch_size=1)

    assert isinstance(prefix, PrefixKV)
    assert torch.allclose(prefix.values[2], cache.layers[2].values[0])


@pytest.mark.parametrize(
    ("method", "options"),
    [(PromptTuningConfig, {}), (PromptEncoderConfig, {"encoder_hidden_size": 24})],
    ids=["prompt-tuning", "p-tuning"],
)
def test_virtual_tokens_are_what_peft_puts_before_the_embeddings(
    method: Any, options: dict[str, int], tmp_path: Path, model: PreTrainedModel
) -> None:
    trained = save_adapter(
        build_model(FAMILIES["llama"]()), tmp_path, seed=1, method=method, num_virtual_tokens=LENGTH, **options
    )
    prefix = read_adapter("mine", tmp_path, model).prefix

    assert isinstance(prefix, VirtualTokens)
    assert prefix.length == LENGTH
    assert prefix.embeddings.shape == (LENGTH, 64)
    assert torch.allclose(prefix.embeddings, trained.get_prompt(batch_size=1)[0])


def test_virtual_tokens_have_the_models_dtype(prefix_folder: Path) -> None:
    """PEFT rounds them to it as well."""
    prefix = read_adapter("mine", prefix_folder, build_model(FAMILIES["llama"]()).to(torch.bfloat16)).prefix
    assert isinstance(prefix, PrefixKV)
    assert prefix.keys.dtype is prefix.values.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ({"num_hidden_layers": 2}, "3 layers"),
        ({"num_key_value_heads": 4}, "2 key/value heads"),
        ({"head_dim": 32}, "32 features"),
    ],
    ids=str,
)
def test_a_prefix_of_another_base_is_refused(sizes: dict[str, int], found: str, prefix_folder: Path) -> None:
    other = build_model(LlamaConfig(**SIZES | sizes))
    with pytest.raises(AdapterMismatch, match=rf"'mine' was trained on another base model.* {found} ") as refused:
        read_adapter("mine", prefix_folder, other)
    assert refused.value.param == "adapter"


def test_embeddings_of_another_base_are_refused(prompt_folder: Path) -> None:
    other = build_model(LlamaConfig(**SIZES | {"hidden_size": 32}))
    with pytest.raises(AdapterMismatch, match="64 values each, the model's embeddings 32"):
        read_adapter("mine", prompt_folder, other)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_virtual_tokens": 4}, "num_virtual_tokens is 4 .* has 5 rows"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens is None"),
        ({"num_transformer_submodules": 2}, "encoder-decoder"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "CPT"}, "peft_type is 'CPT'; LORA, .*PREFIX_TUNING, PROMPT_TUNING, P_TUNING are served"),
        ({"use_dora": True}, "use_dora is set to True, which is not served"),
    ],
    ids=str,
)
def test_a_setting_that_does_not_fit_is_named(
    fields: dict[str, Any], words: str, prompt_folder: Path, model: PreTrainedModel
) -> None:
    change_config(prompt_folder, **fields)
    with pytest.raises(InvalidRequest, match=words):
        read_adapter("mine", prompt_folder, model)


def test_weights_that_are_no_virtual_tokens_are_named(prompt_folder: Path, model: PreTrainedModel) -> None:
    weights = load_file(prompt_folder / WEIGHTS_FILE)
    change_weights(prompt_folder, other=torch.zeros(2), **weights)
    with pytest.raises(InvalidRequest, match="one matrix, prompt_embeddings; it holds other, prompt_embeddings"):
        read_adapter("mine", prompt_folder, model)
    change_weights(prompt_folder, prompt_embeddings=torch.zeros(LENGTH))
    with pytest.raises(InvalidRequest, match="one matrix"):
        read_adapter("mine", prompt_folder, model)
    change_weights(prompt_folder, prompt_embeddings=torch.zeros(0, 64))
    change_config(prompt_folder, num_virtual_tokens=0)
    with pytest.raises(InvalidRequest, match="num_virtual_tokens is 0"):
        read_adapter("mine", prompt_folder, model)


def test_virtual_tokens_that_overflow_the_models_dtype_are_refused(prompt_folder: Path) -> None:
    change_weights(prompt_folder, prompt_embeddings=torch.full((LENGTH, 64), 1e5))
    with pytest.raises(InvalidRequest, match=r"prompt_embeddings overflow torch\.float16"):
        read_adapter("mine", prompt_folder, build_model(FAMILIES["llama"]()).half())
