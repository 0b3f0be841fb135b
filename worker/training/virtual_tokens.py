"""Virtual tokens before the text: what a model is given with them, and whether it can be."""

import inspect
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, cast

import torch
from peft import PeftModel, PrefixTuningConfig, PromptLearningConfig
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tandem.errors import InvalidRequest

ModelInputs = Callable[[Tensor], dict[str, Any]]
"""From token ids [rows, tokens] to what the model's forward is given. Virtual tokens may stand before the rows': the
last `tokens` of each row of hidden states are the ids' own."""


def inputs_of(model: PeftModel) -> ModelInputs:
    """The inputs as PeftModelForCausalLM.forward of PEFT 0.21 makes them, for the model under PEFT's wrapper.

    That way its head and its backbone can run apart, which PEFT's forward does not let them.
    """
    config = model.active_peft_config
    if not config.is_prompt_learning:
        return lambda ids: {"input_ids": ids}
    if isinstance(config, PrefixTuningConfig):
        return lambda ids: {"input_ids": ids, "past_key_values": model.get_prompt(batch_size=len(ids))}

    def after_virtual_tokens(ids: Tensor) -> dict[str, Any]:
        embeddings = cast("nn.Module", model.word_embeddings)(ids)
        prompts = model.get_prompt(batch_size=len(ids)).to(embeddings.dtype)
        return {"inputs_embeds": torch.cat((prompts, embeddings), dim=1)}

    return after_virtual_tokens


def start_from_text(model: PeftModel, token_ids: Sequence[int]) -> None:
    """Let prompt tuning's virtual tokens be a text's, cut or repeated to their number (PEFT's rule for `TEXT`).

    Raises InvalidRequest (param `method.prompt_tuning_init_text`) for a text without a token.
    """
    if not token_ids:
        raise InvalidRequest(
            "the text has no token for this model: write more, or leave it out",
            param="method.prompt_tuning_init_text",
        )
    embedding = cast("Any", model.prompt_encoder)[model.active_adapter].embedding
    with torch.no_grad():
        ids = torch.tensor(list(islice(cycle(token_ids), embedding.num_embeddings)), device=embedding.weight.device)
        embedding.weight.copy_(cast("nn.Module", model.word_embeddings)(ids))


def refuse_unfit(model: PeftModel, twin: PreTrainedModel) -> None:
    """Raises InvalidRequest (param `method.type`) unless `twin`, which `model` wraps, can read its virtual tokens.

    For a prefix the twin runs on a token, in eval mode: every layer must keep keys and values as PEFT makes them.
    Training must hold the device.
    """
    config = model.active_peft_config
    if not isinstance(config, PromptLearningConfig):
        return
    if isinstance(config, PrefixTuningConfig):
        reason = _unfit_for_prefix(model, twin)
    elif getattr(model, "word_embeddings", None) is None or "inputs_embeds" not in _parameters(twin):
        reason = "does not take embeddings in place of tokens"
    else:
        return
    if reason is not None:
        raise InvalidRequest(f"{type(twin).__name__} {reason}: use lora or ia3", param="method.type")


def _unfit_for_prefix(model: PeftModel, twin: PreTrainedModel) -> str | None:
    if "past_key_values" not in _parameters(twin):
        return "has no cache of keys and values for a prefix"
    cache, token = DynamicCache(config=twin.config), torch.zeros((1, 1), dtype=torch.int64, device=twin.device)
    with torch.no_grad():
        twin(input_ids=token, past_key_values=cache, use_cache=True)
        prefix = cast("DynamicCache", model.get_prompt(batch_size=1))
    if [_shape(layer) for layer in cache.layers] != [_shape(layer) for layer in prefix.layers]:
        return "does not keep the same keys and values in every layer"
    return None


def _shape(layer: Any) -> tuple[int, int] | None:
    """Heads and their size; None for a layer that keeps no keys and values, or not one for each token."""
    if not isinstance(layer, DynamicLayer) or layer.keys is None:
        return None
    _, heads, _, size = layer.keys.shape
    return heads, size


def _parameters(twin: PreTrainedModel) -> set[str]:
    return set(inspect.signature(type(twin).forward).parameters)
