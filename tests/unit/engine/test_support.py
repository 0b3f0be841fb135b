"""Which models the engine refuses by their config and class, and in what words."""

import pytest
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    BloomConfig,
    DeepseekV3Config,
    GPTJConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    PreTrainedConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from tandem.errors import InvalidModel
from tests.unit.engine.families import HELD, build
from tests.unit.engine.tiny_models import SIZES
from worker.engine.engine import Engine
from worker.engine.support import kv_shape, unsupported_reason

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 2.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 128,
}
REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "recurrent": (MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=1), "recurrent state"),
    "no attention interface": (
        GPTJConfig(vocab_size=100, n_embd=32, n_layer=1, n_head=2, rotary_dim=8),
        "does not use transformers' attention interface",
    ),
    "biases by distance": (BloomConfig(vocab_size=100, hidden_size=32, n_layer=1, n_head=2), "attention interface"),
    "positions of its own": (
        BartConfig(vocab_size=100, d_model=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32),
        "counts positions itself",
    ),
    "an encoder": (BertConfig(**SIZES), "tokens see later ones"),
    "convolutions": (Lfm2Config(layer_types=["conv", "full_attention", "conv"], **SIZES), "layers other than"),
    "latent attention": (
        DeepseekV3Config(
            **SIZES | {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "n_routed_experts": 8}
        ),
        "latent attention",
    ),
    "chunks, and a temperature by position": (
        Llama4TextConfig(head_dim=16, intermediate_size_mlp=64, num_local_experts=2, **SIZES),
        "chunked_attention",
    ),
    "frequencies by the batch": (
        LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, **SIZES),
        "longest sequence",
    ),
    "frequencies by the length": (Phi3Config(rope_parameters=LONGROPE, **SIZES), "longest sequence"),
}


@pytest.mark.parametrize("family", HELD)
def test_nothing_speaks_against_the_golden_families(family: str) -> None:
    assert unsupported_reason(build(HELD[family]())) is None


@pytest.mark.parametrize("name", REFUSED)
# Without its own kernels installed, Mamba says that it computes slowly.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_that_would_be_wrong_is_refused_with_its_reason(name: str, tokenizer) -> None:
    config, reason = REFUSED[name]
    model = AutoModelForCausalLM.from_config(config)

    with pytest.raises(InvalidModel, match=reason):
        Engine(model, tokenizer, sequence_slots=1, slot_tokens=8, step_tokens=8, adapter_slots=0, adapter_rank=1)


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)

    assert "encoder-decoder" in (unsupported_reason(T5ForConditionalGeneration(config)) or "")


def test_queries_that_share_one_head_need_one_head_of_keys_and_values() -> None:
    assert kv_shape(build(HELD["gpt-bigcode"]()).config).heads == 1


def test_the_shape_is_read_under_a_configs_own_names() -> None:
    """GPT-2 calls its layers `n_layer`, its heads `n_head` and its width `n_embd`."""
    shape = kv_shape(build(HELD["gpt2"]()).config)

    assert (shape.layers, shape.heads, shape.head_dim) == (4, 4, 16)
