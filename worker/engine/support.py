"""Which models the engine can hold, and why it cannot hold the others, as far as a model's config and class tell.

What they do not tell, `self_check` finds out by running the model.
"""

import inspect
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from worker.engine.kv.slots import KVShape

BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Kinds of rotary embedding whose frequencies depend on the longest position in the forward: in a shared batch one
sequence would change another's text. transformers has no other such kind."""

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""The kinds of layer, as configs name them, that the slots implement. (Llama 4's chunks are not worth it: its other
layers scale attention by positions that they count themselves, and cannot share a forward.)"""


SHAPE_FIELDS = ("num_hidden_layers", "num_attention_heads", "hidden_size")
"""What `kv_shape` reads of a config."""


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Why the engine cannot hold this model, in a plain sentence; None when nothing speaks against it."""
    return _class_reason(model) or _attention_reason(model) or _context_reason(model)


def kv_shape(config: PreTrainedConfig) -> KVShape:
    """The shape of a supported model's keys and values, by its config."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return KVShape(config.num_hidden_layers, heads, head_dim)


def _class_reason(model: PreTrainedModel) -> str | None:
    """What of the model's architecture an engine has no place for."""
    config, name = model.config, type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        return f"{name} is an encoder-decoder; the engine holds decoders only"
    if model._is_stateful:
        return f"{name} keeps a recurrent state beside or instead of keys and values"
    # By the source of the model's class. `_supports_attention_backend`, the flag, is missing from OPT-like classes
    # that do use the interface.
    if not model._can_set_attn_implementation():
        return f"{name} does not use transformers' attention interface, so its attention cannot be replaced"
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        return f"{name} counts positions itself and takes none, so that sequences cannot share a forward"
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        return f"{name} has layers in which tokens see later ones"
    if getattr(config, "sub_configs", None):
        return f"{name} has parts beside a text decoder"
    missing = [field for field in SHAPE_FIELDS if not hasattr(config, field)]
    if missing:
        return f"the config of {name} does not name {', '.join(missing)}"
    return None


def _attention_reason(model: PreTrainedModel) -> str | None:
    """What of the model's attention the slots do not implement."""
    config, name = model.config, type(model).__name__
    other = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if other:
        return f"{name} has layers other than full and sliding attention: {', '.join(sorted(other))}"
    if getattr(config, "kv_lora_rank", None) is not None:
        return f"{name} has latent attention, with keys and values of different sizes"
    if getattr(config, "is_heterogeneous", False):
        return f"{name} has layers of different shapes"
    if getattr(config, "alibi", False):
        return f"{name} has no positions but biases by distance (ALiBi)"
    return None


def _context_reason(model: PreTrainedModel) -> str | None:
    """What of the model's positions a shared batch would break."""
    name = type(model).__name__
    if getattr(model.config, "max_position_embeddings", None) is None:
        return f"the config of {name} names no max_position_embeddings, so its context is unknown"
    for kind in _rope_kinds(model.config):
        if kind in BATCH_DEPENDENT_ROPE:
            return f"the rotary embedding of {name} ({kind}) depends on the longest sequence in the batch"
    return None


def _rope_kinds(config: Any) -> set[str]:
    """The kinds of rotary embedding; where layers differ, `rope_parameters` has a part for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in parameters.values() if isinstance(part, dict)] or [parameters]
    return {str(part.get("rope_type", "default")) for part in parts}
