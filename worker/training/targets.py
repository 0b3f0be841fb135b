"""Which layers of a model a method changes: names from a spec, or PEFT's choice, checked against the model."""

import re
from collections.abc import Iterable, Mapping, Sequence

from peft.utils import (
    TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LOHA_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LOKR_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_OFT_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_VERA_TARGET_MODULES_MAPPING,
)
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tandem.errors import InvalidRequest
from tandem.specs.methods import (
    AdaLoraMethod,
    Ia3Method,
    LohaMethod,
    LokrMethod,
    LoraMethod,
    OftMethod,
    VeraMethod,
)

UpdateMethod = LoraMethod | AdaLoraMethod | LohaMethod | LokrMethod | VeraMethod | OftMethod
"""The methods that update linear layers as a whole."""

PEFT_TARGETS: dict[type[UpdateMethod], Mapping[str, Sequence[str] | str]] = {
    LoraMethod: TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    AdaLoraMethod: TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING,
    LohaMethod: TRANSFORMERS_MODELS_TO_LOHA_TARGET_MODULES_MAPPING,
    LokrMethod: TRANSFORMERS_MODELS_TO_LOKR_TARGET_MODULES_MAPPING,
    VeraMethod: TRANSFORMERS_MODELS_TO_VERA_TARGET_MODULES_MAPPING,
    OftMethod: TRANSFORMERS_MODELS_TO_OFT_TARGET_MODULES_MAPPING,
}
"""PEFT's targets of each by a model's type."""


def update_targets(method: UpdateMethod, model: PreTrainedModel, paths: Sequence[str]) -> list[str]:
    """The targets that are named, else PEFT's for the model's type, else all linear layers of attention.

    `paths` are those of the layers to choose from. Raises InvalidRequest (param `method.target_modules`) when a name
    is that of none of them, and when the model's attention has none.
    """
    if method.target_modules is not None:
        return _named_targets(method.target_modules, paths)
    chosen = _choice_of_peft(PEFT_TARGETS[type(method)], model, paths)
    if chosen is None:
        chosen = sorted({_leaf(path) for path in paths if re.search(r"(?i)attn|attention", path.rpartition(".")[0])})
    if not chosen:
        raise _no_default(model, paths)
    return chosen


def ia3_targets(method: Ia3Method, model: PreTrainedModel, paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """The targets that are named, else PEFT's for the model's type; and those of them whose inputs are scaled.

    Raises InvalidRequest as `update_targets` does, also for a model whose type PEFT does not know: which of its
    layers (IA)³ should scale, and on which side, nobody has tried.
    """
    if method.target_modules is not None:
        targets: list[str] | None = _named_targets(method.target_modules, paths)
    else:
        targets = _choice_of_peft(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING, model, paths)
    if targets is None:
        raise _no_default(model, paths)
    if method.feedforward_modules is not None:
        return targets, sorted(set(method.feedforward_modules))
    feedforward = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model.config.model_type, [])
    scaled_inputs = {path for path in paths if any(path.endswith(name) for name in feedforward)}
    return targets, [target for target in targets if _paths_of(target, paths) <= scaled_inputs]


def linear_paths(model: PreTrainedModel, *, besides: Sequence[str] = ()) -> list[str]:
    """Paths of the linear layers that can be adapted: all but those in the children `besides`, and but a language
    model's head, which serving shares among adapters."""
    head = model.get_output_embeddings()
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and path.partition(".")[0] not in besides
    ]


def stored_transposed(model: PreTrainedModel, targets: Iterable[str]) -> bool:
    """Whether the targets are GPT-2's linears, whose weight is [in, out]: PEFT has to be told."""
    return any(
        isinstance(module, Conv1D) and any(names(target, path) for target in targets)
        for path, module in model.named_modules()
    )


def _named_targets(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    if unknown := [name for name in names if not _paths_of(name, paths)]:
        raise InvalidRequest(
            f"the model has no linear layer called {', '.join(unknown)}; it has {_leaf_names(paths)}",
            param="method.target_modules",
        )
    return sorted(set(names))


def _choice_of_peft(
    mapping: Mapping[str, Sequence[str] | str], model: PreTrainedModel, paths: Sequence[str]
) -> list[str] | None:
    """PEFT's targets for the model's type; None where it has none, or the model does not bear them out."""
    choice = mapping.get(model.config.model_type)
    if isinstance(choice, str):  # a regular expression over whole paths
        return sorted(path for path in paths if re.fullmatch(choice, path)) or None
    if choice and all(_paths_of(target, paths) for target in choice):
        return sorted(choice)
    return None


def _paths_of(target: str, paths: Iterable[str]) -> set[str]:
    return {path for path in paths if names(target, path)}


def names(target: str, path: str) -> bool:
    """PEFT's rule: a target is a whole path, or its end after a dot."""
    return path == target or path.endswith(f".{target}")


def _no_default(model: PreTrainedModel, paths: Iterable[str]) -> InvalidRequest:
    return InvalidRequest(
        f"no default target is known for models of type {model.config.model_type}: name some of its linear layers, "
        f"which are {_leaf_names(paths)}",
        param="method.target_modules",
    )


def _leaf_names(paths: Iterable[str]) -> str:
    return ", ".join(sorted({_leaf(path) for path in paths})) or "none"


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]
