"""Which models the engine refuses, and in what words."""

import pytest
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from tandem.errors import InvalidModel
from tests.unit.engine.tiny_models import FAMILIES, SIZES, build_model
from worker.engine.engine import Engine
from worker.engine.support import unsupported_reason

REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "sliding window": (MistralConfig(sliding_window=16, **SIZES), "sliding window"),
    "some layers with a window": (Gemma3TextConfig(head_dim=16, sliding_window=16, **SIZES), "sliding window"),
    "capped scores": (Gemma2Config(head_dim=16, **SIZES), "sliding window|caps"),
    "other config names": (GPT2Config(vocab_size=100, n_embd=32, n_layer=1, n_head=2), "num_hidden_layers"),
    "recurrent": (MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=1), "recurrent"),
    "no attention interface": (BloomConfig(vocab_size=100, hidden_size=32, n_layer=1, n_head=2), "interface"),
    "frequencies by the batch": (
        LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, **SIZES),
        "longest sequence",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_golden_families_are_supported(family: str) -> None:
    assert unsupported_reason(build_model(FAMILIES[family]())) is None


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
