"""Reads the virtual tokens of prefix tuning, prompt tuning and p-tuning as PEFT stores them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tandem.errors import AdapterMismatch
from tandem.specs.peft_config import CONFIG_FILE, WEIGHTS_FILE
from worker.engine.adapters.peft_folder import ready_to_copy, refusal
from worker.engine.adapters.prefix import PrefixKV, VirtualTokens
from worker.engine.support import kv_shape

KEY = "prompt_embeddings"
"""The one key of such an adapter's weights. PEFT applies what re-parametrized them in training before it saves."""


def read_prefix(
    adapter_id: str, tensors: Mapping[str, torch.Tensor], config: dict[str, Any], model: PreTrainedModel
) -> PrefixKV | VirtualTokens:
    """What the weights `tensors` put before a prompt of `model`, in its dtype, on the host.

    `config` is of one of `PREFIX_METHODS`. Raises InvalidRequest for files that cannot be served, AdapterMismatch
    for those of another base model.
    """
    flat = tensors.get(KEY)
    if flat is None or len(tensors) != 1 or flat.ndim != 2:
        raise refusal(
            adapter_id, f"{WEIGHTS_FILE} must hold one matrix, {KEY}; it holds {', '.join(sorted(tensors))}"
        )
    length = config.get("num_virtual_tokens")
    if length != len(flat) or length < 1:
        raise refusal(
            adapter_id, f"num_virtual_tokens is {length!r} in {CONFIG_FILE}, but {KEY} has {len(flat)} rows"
        )
    if config.get("num_transformer_submodules") not in (None, 1):
        raise refusal(adapter_id, "num_transformer_submodules is not 1: it is an adapter of an encoder-decoder")
    ready = ready_to_copy(adapter_id, KEY, flat, model.dtype, pin=model.device.type == "cuda")
    if config["peft_type"] == "PREFIX_TUNING":
        return _prefix_kv(adapter_id, ready, config, model)
    return _virtual_tokens(adapter_id, ready, model)


def _prefix_kv(adapter_id: str, flat: torch.Tensor, config: dict[str, Any], model: PreTrainedModel) -> PrefixKV:
    """Prefix tuning (Li & Liang 2021).

    A row holds one virtual token's keys and values: [layers, 2, heads, head_dim], flattened. PEFT puts them into
    the cache as they are: the keys are not rotated, and the prompt's first token stands at position `length`.
    """
    shape = kv_shape(model.config)
    found = (config.get("num_layers"), config.get("num_attention_heads"), config.get("token_dim"))
    expected = (shape.layers, shape.heads, shape.heads * shape.head_dim)
    if found != expected or flat.shape[1] != 2 * shape.layers * shape.heads * shape.head_dim:
        raise AdapterMismatch(
            f"adapter {adapter_id!r} was trained on another base model: its {KEY} have {flat.shape[1]} values for "
            f"{found[0]} layers (num_layers), {found[1]} key/value heads (num_attention_heads) and {found[2]} "
            f"features (token_dim); the model has {expected[0]}, {expected[1]} and {expected[2]}",
            param="adapter",
        )
    stored = flat.view(len(flat), shape.layers, 2, shape.heads, shape.head_dim).permute(2, 1, 3, 0, 4)
    keys, values = stored.contiguous()
    if flat.is_pinned():
        keys, values = keys.pin_memory(), values.pin_memory()
    return PrefixKV(keys, values)


def _virtual_tokens(adapter_id: str, embeddings: torch.Tensor, model: PreTrainedModel) -> VirtualTokens:
    """Prompt tuning (Lester et al. 2021) and p-tuning (Liu et al. 2021).

    They take the place of what the model's embedding gives for a token, at the first positions.
    """
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    expected = embedding.embedding_dim
    if embeddings.shape[1] != expected:
        raise AdapterMismatch(
            f"adapter {adapter_id!r} was trained on another base model: its {KEY} have {embeddings.shape[1]} values "
            f"each, the model's embeddings {expected}",
            param="adapter",
        )
    return VirtualTokens(embeddings)
