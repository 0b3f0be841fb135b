"""From the method of a spec to PEFT's config, checked against the model that is trained."""

import re
from collections.abc import Sequence
from typing import cast

from peft import LoraConfig
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tandem.errors import InvalidRequest
from tandem.specs import LoraMethod


def peft_config(
    method: LoraMethod,
    model: PreTrainedModel,
    *,
    base_name: str | None = None,
    task_type: str = "CAUSAL_LM",
    trained_whole: Sequence[str] = (),
) -> LoraConfig:
    """PEFT's config for `method` on `model`, which is its base and called `base_name` in the adapter's folder.

    `task_type` is PEFT's name for the task. `trained_whole`: children of the model that are trained and saved as
    they are, without low-rank matrices: a new head.

    Raises InvalidRequest (param `method.target_modules`) when a target names no linear layer of the model, or when
    none is given and the model's attention has none.
    """
    targets = _targets(method, model, linear_paths(model, besides=trained_whole))
    return LoraConfig(
        task_type=task_type,
        base_model_name_or_path=base_name,
        r=method.r,
        lora_alpha=cast("int", method.alpha),  # PEFT says int and only divides it by the rank
        lora_dropout=method.dropout,
        bias="none",
        fan_in_fan_out=_stored_transposed(model, targets),
        target_modules=targets,
        modules_to_save=list(trained_whole) or None,
    )


def _targets(method: LoraMethod, model: PreTrainedModel, paths: list[str]) -> list[str]:
    if method.target_modules is None:
        return _default_targets(model, paths)
    unknown = [target for target in method.target_modules if not any(_names(target, path) for path in paths)]
    if unknown:
        raise InvalidRequest(
            f"the model has no linear layer called {', '.join(unknown)}; it has {_leaf_names(paths)}",
            param="method.target_modules",
        )
    return sorted(set(method.target_modules))


def _default_targets(model: PreTrainedModel, paths: list[str]) -> list[str]:
    """PEFT's choice for the model's type where it has one and the model bears it out, else all of attention."""
    choice = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    if isinstance(choice, str):  # a regular expression over whole paths
        chosen = [path for path in paths if re.fullmatch(choice, path)]
        if chosen:
            return sorted(chosen)
    elif choice and all(any(_names(target, path) for path in paths) for target in choice):
        return sorted(choice)
    attention = {path.rpartition(".")[2] for path in paths if re.search(r"attn|attention", path.rpartition(".")[0])}
    if not attention:
        raise InvalidRequest(
            f"no default target is known for models of type {model.config.model_type}: name some of its linear "
            f"layers, which are {_leaf_names(paths)}",
            param="method.target_modules",
        )
    return sorted(attention)


def linear_paths(model: PreTrainedModel, *, besides: Sequence[str] = ()) -> list[str]:
    """Paths of the linear layers that can be adapted: all but those in the children `besides`, and but a language
    model's head, which serving shares among adapters."""
    head = model.get_output_embeddings()
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and path.partition(".")[0] not in besides
    ]


def _stored_transposed(model: PreTrainedModel, targets: list[str]) -> bool:
    """Whether the targets are GPT-2's linears, whose weight is [in, out]: PEFT has to be told."""
    return any(
        isinstance(module, Conv1D) and any(_names(target, path) for target in targets)
        for path, module in model.named_modules()
    )


def _names(target: str, path: str) -> bool:
    """PEFT's rule: a target is a whole path, or its end after a dot."""
    return path == target or path.endswith(f".{target}")


def _leaf_names(paths: list[str]) -> str:
    return ", ".join(sorted({path.rpartition(".")[2] for path in paths})) or "none"
