"""A tiny random model of each decoder family that the engine is promised to hold, with weights that make a test hard.

Random weights as a family draws them make easy texts: where the head is tied to the embeddings, the last token
repeats itself whatever came before, and a wrong attention goes unnoticed. Here heads are untied and the weights
large, so that every earlier token changes the text.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from tests.unit.engine.tiny_models import VOCABULARY

WINDOW = 12
"""Tokens: prompts are longer, and shorter ones grow beyond it while they decode."""

GAIN = 2.0
"""Standard deviation of a product's outputs where that of its inputs is 1: after 4 layers every token matters."""

_ENDLESS: dict[str, Any] = {
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_SIZES: dict[str, Any] = _ENDLESS | {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_UNGROUPED = {name: value for name, value in _SIZES.items() if name != "num_key_value_heads"}
_GPT2_SIZES = _ENDLESS | {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_STRETCHED = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
_HALF_SLIDING = ["sliding_attention", "full_attention"] * 2


def _llama(rope: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(rope_parameters=_STRETCHED | rope, **_SIZES)


HELD: dict[str, Callable[[], PreTrainedConfig]] = {
    "biogpt": lambda: BioGptConfig(**_UNGROUPED),
    "cohere": lambda: CohereConfig(**_SIZES),
    "cohere2": lambda: Cohere2Config(sliding_window=WINDOW, layer_types=_HALF_SLIDING, **_SIZES),
    "gemma": lambda: GemmaConfig(head_dim=16, **_SIZES),
    "gemma2": lambda: Gemma2Config(
        head_dim=16, sliding_window=WINDOW, attn_logit_softcapping=5.0, query_pre_attn_scalar=16, **_SIZES
    ),
    "gemma3": lambda: Gemma3TextConfig(head_dim=16, sliding_window=WINDOW, layer_types=_HALF_SLIDING, **_SIZES),
    "glm": lambda: GlmConfig(head_dim=16, **_SIZES),
    "glm4": lambda: Glm4Config(head_dim=16, **_SIZES),
    "gpt2": lambda: GPT2Config(**_GPT2_SIZES),
    "gpt-bigcode": lambda: GPTBigCodeConfig(multi_query=True, **_GPT2_SIZES),
    "gpt-neox": lambda: GPTNeoXConfig(**_UNGROUPED),
    "gpt-oss": lambda: GptOssConfig(head_dim=16, sliding_window=WINDOW, **_EXPERTS, **_SIZES),
    "granite": lambda: GraniteConfig(**_SIZES),
    "llama": lambda: LlamaConfig(**_SIZES),
    "llama, llama3 positions": lambda: _llama(
        {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    ),
    "llama, linear positions": lambda: _llama({"rope_type": "linear"}),
    "llama, yarn positions": lambda: _llama({"rope_type": "yarn"}),
    "mistral": lambda: MistralConfig(sliding_window=WINDOW, **_SIZES),
    "mixtral": lambda: MixtralConfig(sliding_window=None, **_EXPERTS, **_SIZES),
    "olmo": lambda: OlmoConfig(**_SIZES),
    "olmo2": lambda: Olmo2Config(**_SIZES),
    "olmo3": lambda: Olmo3Config(sliding_window=WINDOW, layer_types=_HALF_SLIDING, **_SIZES),
    "opt": lambda: OPTConfig(word_embed_proj_dim=64, ffn_dim=96, **_UNGROUPED),
    "nemotron, whose attention gets no options": lambda: NemotronConfig(**_SIZES),
    "phi": lambda: PhiConfig(**_SIZES),
    "phi3": lambda: Phi3Config(sliding_window=WINDOW, **_SIZES),
    "qwen2": lambda: Qwen2Config(**_SIZES),
    "qwen2, upper layers sliding": lambda: Qwen2Config(
        use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2, **_SIZES
    ),
    "qwen3": lambda: Qwen3Config(head_dim=16, **_SIZES),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        head_dim=16, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, **_SIZES
    ),
    "smollm3": lambda: SmolLM3Config(no_rope_layers=[1, 0, 1, 0], **_SIZES),
    "stablelm, whose attention gets no options": lambda: StableLmConfig(**_SIZES),
    "starcoder2": lambda: Starcoder2Config(sliding_window=WINDOW, **_SIZES),
}


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """The same fp32 weights for the same config, whatever random numbers were drawn before."""
    random = torch.Generator().manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval().float()
    embeddings = model.get_input_embeddings()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight is embeddings.weight:
                # Small, so that what the layers add outweighs the token itself.
                weight.normal_(std=0.2, generator=random)
            elif weight.ndim > 1:
                # nn.Linear keeps [outputs, inputs], GPT-2's Conv1D and experts the other way round.
                weight.normal_(std=GAIN * min(weight.shape[-2:]) ** -0.5, generator=random)
            elif name.endswith("sinks"):
                weight.normal_(generator=random)
            elif name.endswith("bias"):
                weight.normal_(std=0.1, generator=random)
    model.generation_config.eos_token_id = None
    return model
