"""Which models the engine can hold, and why it cannot hold the others."""

from typing import Any

from transformers import PreTrainedModel

from worker.engine.kv_slots import KVShape

BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Kinds of rotary embedding whose frequencies depend on the longest position in the forward: in a shared batch one
sequence would change another's text."""


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Why the engine cannot hold this model, in a plain sentence; None when it can."""
    config = model.config
    name = type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        return f"{name} is an encoder-decoder; the engine holds decoders only"
    if model._is_stateful:
        return f"{name} keeps a recurrent state beside or instead of keys and values"
    if not model._supports_attention_backend:
        return f"{name} does not use transformers' attention interface, so its attention cannot be replaced"
    missing = [
        field for field in ("num_hidden_layers", "num_attention_heads", "hidden_size") if field not in _own(config)
    ]
    if missing:
        return f"the config of {name} does not name {', '.join(missing)} in the usual way"
    if getattr(config, "sub_configs", None):
        return f"{name} has parts beside a text decoder"
    return _attention_reason(config, name) or _context_reason(model)


def kv_shape(model: PreTrainedModel) -> KVShape:
    """The shape of a supported model's keys and values."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return KVShape(config.num_hidden_layers, heads, head_dim)


def _own(config: Any) -> dict[str, Any]:
    """The config's fields under their own names: an `attribute_map` alias such as GPT-2's does not count."""
    fields: dict[str, Any] = vars(config)
    return fields


def _attention_reason(config: Any, name: str) -> str | None:
    """What of the model's attention the slots do not implement."""
    if getattr(config, "sliding_window", None) is not None or getattr(config, "attention_chunk_size", None):
        return f"{name} attends within a sliding window or in chunks"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"{name} has layers other than full attention: {', '.join(sorted(kinds))}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"{name} caps its attention scores"
    if getattr(config, "kv_lora_rank", None) is not None:
        return f"{name} has latent attention, with keys and values of different sizes"
    return None


def _context_reason(model: PreTrainedModel) -> str | None:
    """What of the model's positions a shared batch would break."""
    name = type(model).__name__
    if getattr(model.config, "max_position_embeddings", None) is None:
        return f"the config of {name} names no max_position_embeddings, so its context is unknown"
    rope = getattr(model.config, "rope_parameters", None) or {}
    kind = str(rope.get("rope_type", "default"))
    if kind in BATCH_DEPENDENT_ROPE:
        return f"the rotary embedding of {name} ({kind}) depends on the longest sequence in the batch"
    return None
