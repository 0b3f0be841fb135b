"""Every decoder family of transformers, held or refused: `python -m tests.unit.engine.family_sweep [model_type …]`.

For each model type that transformers maps to a causal language model: a tiny random model of its default config, made
small. What the engine does not refuse must generate what `generate()` does; the command fails if a text differs.
Prints a Markdown table; a run of all takes a few minutes, as most of them import a module of their own.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from tandem.specs import GenerationParameters
from tests.unit.engine.families import WINDOW, build
from tests.unit.engine.tiny_models import VOCABULARY, generate, random_prompts
from worker.engine.engine import Engine
from worker.engine.self_check import self_check
from worker.engine.sequence import Sequence
from worker.engine.support import unsupported_reason

LARGEST = 8_000_000
"""Parameters. A config that is larger after shrinking has sizes under names that SMALL does not know."""

NEW_TOKENS = 16
PROMPTS = (5, 40, 9)
"""Tokens: within a window of 12, beyond it, and growing across it."""

SMALL: dict[str, Any] = {
    # the usual names
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "sliding_window": WINDOW, "attention_chunk_size": WINDOW, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
    # GPT-2's, OPT's, BART's and others'
    "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256, "n_ctx": 256, "n_inner": None, "rotary_dim": 8,
    "d_model": 64, "n_heads": 4, "n_layers": 4, "max_seq_len": 256, "ffn_dim": 96, "word_embed_proj_dim": 64,
    "decoder_layers": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 96, "encoder_layers": 4,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 96, "num_layers": 4, "num_heads": 4, "ffn_hidden_size": 96,
    "embedding_size": 64, "num_decoder_layers": 4,
    # mixtures of experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_topk": 2, "num_shared_experts": 1, "n_shared_experts": 1, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "expert_ffn_hidden_size": 32, "zero_expert_num": 0, "moe_num_experts": 4,
    "moe_k": 2, "first_k_dense_replace": 1, "moe_layer_start_index": 1, "moe_num_shared_experts": 1, "moe_every": 2,
    "intermediate_size_mlp": 96, "shared_intermediate_size": 32, "moe_num_active": 2,
    # latent attention, and layers of their own
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0,
    "num_global_key_value_heads": 2, "global_head_dim": 16, "num_nextn_predict_layers": 0, "kv_channels": 16,
    # recurrent ones
    "state_size": 8, "n_groups": 1, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_expand": 2,
    "mamba_num_heads": 4, "mamba_head_dim": 32, "mamba_n_groups": 1, "attention_hidden_size": 64,
}  # fmt: skip
"""Values for a config's sizes, under every name that a config gives them."""


@dataclass(frozen=True)
class Verdict:
    """What became of a family."""

    outcome: str
    """`held`, `refused`, `not built` or `WRONG`."""
    detail: str = ""


def judge(model_type: str) -> Verdict:
    """Build a family's tiny model and find out whether the engine holds it, and whether it then writes its text."""
    try:
        config = small_config(model_type)
        with torch.device("meta"):
            size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            return Verdict("not built", f"{size / 1e6:.0f} million parameters after shrinking")
        model = build(config)
    except Exception as error:  # a config's own checks raise what they like; the table says what
        return Verdict("not built", _first_line(error))
    reason = unsupported_reason(model) or self_check(model)
    if reason is not None:
        return Verdict("refused", reason)
    prompts = random_prompts(PROMPTS)
    expected = [generate(model, prompt, NEW_TOKENS) for prompt in prompts]
    return Verdict("held") if _together(model, prompts) == expected else Verdict("WRONG", "another text")


def small_config(model_type: str) -> PreTrainedConfig:
    """The family's default config with small sizes; raises what the family's own checks raise."""
    family = CONFIG_MAPPING[model_type]
    default = family()
    aliases = getattr(family, "attribute_map", {})
    own = vars(default).keys() - aliases
    changed = {name: value for name, value in SMALL.items() if name in own}
    for optional in ("sliding_window", "attention_chunk_size"):
        if optional in own and getattr(default, optional) is None:
            del changed[optional]
    if getattr(default, "kv_lora_rank", None) is not None:
        changed["num_key_value_heads"] = changed["num_attention_heads"]
    if getattr(default, "multi_query", False):
        changed["num_key_value_heads"] = 1
    return family(**changed)


def _together(model: torch.nn.Module, prompts: list[list[int]]) -> list[list[int]]:
    """The engine's tokens for the prompts: two slots, chunks of 16 tokens, each arriving while others run."""
    engine = Engine(
        model, _Numbers(), sequence_slots=2, slot_tokens=128, step_tokens=16, adapter_slots=0, adapter_rank=1
    )
    sequences = [Sequence(prompt, GenerationParameters(max_new_tokens=NEW_TOKENS)) for prompt in prompts]
    for sequence in sequences:
        engine.submit(sequence)
        engine.step()
    while engine.has_work():
        engine.step()
    return [list(sequence.future.result(timeout=0).token_ids) for sequence in sequences]


class _Numbers:
    """Writes tokens as numbers: the sweep is about tokens alone."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        return " ".join(map(str, token_ids))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_type", nargs="*", help="default: all")
    model_types: list[str] = parser.parse_args().model_type or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    set_verbosity_error()
    disable_progress_bar()
    torch.set_num_threads(1)
    outcomes = []
    sys.stdout.write("| model type | outcome | why |\n| --- | --- | --- |\n")
    for model_type in model_types:
        verdict = judge(model_type)
        outcomes.append(verdict.outcome)
        sys.stdout.write(f"| {model_type} | {verdict.outcome} | {verdict.detail} |\n")
        sys.stdout.flush()
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    sys.stdout.write(f"\n{counts}\n")
    return 1 if "WRONG" in outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
