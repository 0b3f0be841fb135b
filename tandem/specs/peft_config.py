"""Which adapters of PEFT are served, by the fields of their adapter_config.json."""

from collections.abc import Mapping
from typing import Any

LINEAR_METHODS: dict[str, frozenset[str]] = {
    "LORA": frozenset({"r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"}),
    "ADALORA": frozenset({"init_r", "lora_alpha", "rank_pattern"}),
    "IA3": frozenset(),
}
"""PEFT's methods that update linear layers, with the config's fields that their reading acts on."""

_OF_THE_MODEL = frozenset(
    {"num_virtual_tokens", "num_transformer_submodules", "token_dim", "num_layers", "num_attention_heads"}
)
PREFIX_METHODS: dict[str, frozenset[str]] = {
    "PREFIX_TUNING": _OF_THE_MODEL,
    "PROMPT_TUNING": _OF_THE_MODEL,
    "P_TUNING": _OF_THE_MODEL,
}
"""PEFT's methods that put virtual tokens before the prompt, with the config's fields that their reading acts on."""

NEUTRAL_FIELDS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        # PEFT sets it to what the layer's kind needs, whatever the file says.
        "fan_in_fan_out",
        # The vectors' shapes say the same.
        "feedforward_modules",
        "inference_mode",
        "init_ia3_weights",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "target_modules",
        "task_type",
        # AdaLoRA's schedule. Its `r` is not read: the rank starts at init_r.
        "r",
        "target_r",
        "tinit",
        "tfinal",
        "deltaT",
        "beta1",
        "beta2",
        "orth_reg_weight",
        "total_step",
        # How virtual tokens were started and trained: what is saved is what came out.
        "encoder_dropout",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_reparameterization_type",
        "init_weights",
        "prefix_projection",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }
)
"""Fields that change how an adapter is made, or only describe it, but not what its weights compute."""

INITIALIZATIONS_OVER_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` that also change the base weights: such an adapter is wrong on the plain base."""

MAX_QUOTED = 200
"""Characters of a stranger's file that a message repeats."""


def unserved(
    config: Mapping[str, Any], *, methods: Mapping[str, frozenset[str]], also_served: frozenset[str] = frozenset()
) -> str | None:
    """Why an adapter with this config cannot be served; None if nothing in it says so.

    `methods` are the kinds that may be asked for, by PEFT's names, with the fields that their reading acts on;
    `also_served` are fields that the caller acts on besides.
    """
    method = config.get("peft_type")
    if not isinstance(method, str) or method not in methods:
        return f"peft_type is {_short(method)}; {', '.join(methods)} are served"
    initialization = config.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.lower().startswith(INITIALIZATIONS_OVER_THE_BASE):
        return f"init_lora_weights {_short(initialization)} also changes the base weights"
    known = methods[method] | NEUTRAL_FIELDS | also_served
    for field, value in config.items():
        # A field that this version does not know may change what the adapter computes: refuse it unless it is off.
        if field not in known and value not in (None, False, "none", 0, [], {}, ""):
            return f"{field[:MAX_QUOTED]} is set to {_short(value)}, which is not served"
    return None


def _short(value: object) -> str:
    return repr(value)[:MAX_QUOTED]
