"""PEFT's folder of an adapter: its files, its keys, and which are served by the fields of adapter_config.json."""

from collections.abc import Mapping
from typing import Any

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MODEL_CONFIG_FILE = "config.json"
"""Of the model that was trained, beside the other two where the adapter brings a head: what the head is built of, and
what its outputs mean."""
KEY_PREFIX = "base_model.model."
"""PEFT's wrappers around the model, which stand before every module's path in the weights' keys."""

LINEAR_METHODS: dict[str, frozenset[str]] = {
    "LORA": frozenset({"r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"}),
    "ADALORA": frozenset({"init_r", "lora_alpha", "rank_pattern"}),
    "LOHA": frozenset({"r", "alpha", "rank_pattern", "alpha_pattern"}),
    "LOKR": frozenset({"r", "alpha", "rank_pattern", "alpha_pattern"}),
    "VERA": frozenset({"r", "save_projection"}),
    "IA3": frozenset(),
}
"""PEFT's methods that update linear layers by sums or factors, with the config's fields that their reading uses."""

APART_METHODS: dict[str, frozenset[str]] = {
    "OFT": frozenset(
        {"r", "oft_block_size", "block_share", "coft", "eps", "use_cayley_neumann", "num_cayley_neumann_terms"}
    ),
}
"""PEFT's methods that no batch of several adapters holds: PEFT itself runs them, with the fields that it acts on."""

LAYER_PARTS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "LORA": (frozenset({"lora_A.weight", "lora_B.weight"}), frozenset({"lora_magnitude_vector"})),
    "ADALORA": (frozenset({"lora_A", "lora_B", "lora_E"}), frozenset()),
    "LOHA": (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), frozenset()),
    "LOKR": (
        frozenset(),
        frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
    ),
    "VERA": (frozenset({"vera_lambda_b", "vera_lambda_d"}), frozenset()),
    "IA3": (frozenset({"ia3_l"}), frozenset()),
    "OFT": (frozenset({"oft_R.weight"}), frozenset()),
}
"""Kind → the tensors that it has for every layer, and those that it may have besides: the ends of the keys."""

SHARED_PARTS: dict[str, frozenset[str]] = {"VERA": frozenset({"base_model.vera_A", "base_model.vera_B"})}
"""Kind → the keys of tensors that all layers share."""

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
        # VeRA's and OFT's beginnings, and what acts in training only.
        "d_initial",
        "decompose_both",
        "decompose_factor",
        "module_dropout",
        "num_cayley_neumann_terms",
        "projection_prng_key",
        "rank_dropout",
        "rank_dropout_scale",
        "use_effective_conv2d",
        "vera_dropout",
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
