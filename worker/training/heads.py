"""A model with a head, as a twin of a resident body: the body's weights are shared, the head's are new."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from tandem.errors import UnsupportedTask
from tandem.specs.finetune import FineTuneTask
from worker.training.twin import copy_buffers, share_parameters

HEADED_CLASSES: dict[FineTuneTask, Any] = {
    "text-classification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "token-classification": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "question-answering": MODEL_FOR_QUESTION_ANSWERING_MAPPING,
}
"""Task → transformers' table from a config's class to the model's class with that head."""
SPAN_LABELS = 2
"""Outputs for each token of a question-answering head: how well an answer starts there, and ends."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is put on a body, and learned beside its adapter."""

    task: FineTuneTask
    labels: tuple[str, ...]
    """The classes' names, in the order of the outputs; none for question-answering."""


def build_headed_twin(body: PreTrainedModel, head: Head) -> PreTrainedModel:
    """A model of the class that puts `head` on the body's architecture, over the memory of the body's parameters.

    As for `build_twin`, modules, buffers and config are its own, and it starts in eval mode. The head's weights are
    in fp32 on the CPU and have no values yet: see `draw_head`. In a body of lower precision the head still computes
    in fp32, since steps as small as training's would be lost in its rounding.

    Raises UnsupportedTask when transformers has no such class for the body, and when the body lacks a parameter or
    buffer that the class has: BERT classifies what its pooler makes, and no new pooler is drawn in its place.
    """
    config = _headed_config(body.config, head)
    cls = _headed_class(body, head.task)
    with torch.device("meta"):  # as in `build_twin`: for this thread only
        twin: PreTrainedModel = cls(config)
    shared = twin.base_model
    if shared is twin:
        raise ValueError(f"{cls.__name__} keeps its body under no name of its own, so it cannot be shared")
    try:
        share_parameters(body.base_model, shared)
        copy_buffers(body.base_model, shared)
    except ValueError as error:
        raise UnsupportedTask(
            f"the model was loaded without a part that {cls.__name__} needs for {head.task}: {error}", param="model"
        ) from error
    for name in head_names(twin):
        twin.get_submodule(name).to_empty(device="cpu").float()
    if homeless := [name for name, parameter in twin.named_parameters() if parameter.is_meta]:
        raise ValueError(f"{cls.__name__} has parameters in neither its body nor a part of its head: {homeless}")
    if body.dtype != torch.float32:
        for module in _head_modules(twin):
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(_to_single_precision)
    twin.eval()
    return twin


def head_names(twin: PreTrainedModel) -> list[str]:
    """The children of a headed model that hold parameters and are not its body: its head, whole."""
    return [
        name
        for name, child in twin.named_children()
        if child is not twin.base_model and next(child.parameters(), None) is not None
    ]


def draw_head(twin: PreTrainedModel) -> None:
    """Give the head its first weights, by the class's own rule, and put it where the body is.

    Draws from torch's CPU generator, as much and in the order in which `from_pretrained` does for weights that a
    file lacks: the same seed gives the same head, on every device.
    """
    for module in _head_modules(twin):
        twin._init_weights(module)
    device = next(twin.base_model.parameters()).device
    for name in head_names(twin):
        twin.get_submodule(name).to(device)


def _head_modules(twin: PreTrainedModel) -> Iterator[nn.Module]:
    """All modules of the head, children before their parents."""

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            yield from walk(child)
        yield module

    for name in head_names(twin):
        yield from walk(twin.get_submodule(name))


def _headed_class(body: PreTrainedModel, task: FineTuneTask) -> Any:
    classes = HEADED_CLASSES[task]
    if type(body.config) not in classes:
        raise UnsupportedTask(
            f"models of type {body.config.model_type!r} have no head for {task}: choose another model or task",
            param="model",
        )
    cls = classes[type(body.config)]
    return cls[0] if isinstance(cls, tuple) else cls


def _headed_config(body: PreTrainedConfig, head: Head) -> PreTrainedConfig:
    config = copy.deepcopy(body)
    config._attn_implementation = None
    if head.task == "question-answering":
        config.num_labels = SPAN_LABELS
    else:
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: number for number, label in enumerate(head.labels)}
    if head.task == "text-classification":
        config.problem_type = "single_label_classification"
    return config


def _to_single_precision(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.float() if isinstance(value, Tensor) and value.is_floating_point() else value for value in inputs
    )
