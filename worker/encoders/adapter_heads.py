"""The head of an encoder adapter: the library's own headed class, with a stand-in where its body was.

So a head computes what the library computes, whatever the architecture, from what the resident body has computed.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
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
from transformers.utils.generic import ModelOutput

from tandem.errors import AdapterMismatch, InvalidModel
from worker.engine.adapters.peft_folder import refusal

HEADED_CLASSES: dict[str, Any] = {
    "SEQ_CLS": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "TOKEN_CLS": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "QUESTION_ANS": MODEL_FOR_QUESTION_ANSWERING_MAPPING,
}
"""PEFT's task type → the library's headed class for each architecture, by its config class."""


class BodyStandIn(nn.Module):
    """Stands in a headed model where its body was, and gives what the resident body has computed for its rows."""

    def __init__(self, device: torch.device, *, pools: bool = True) -> None:
        """`device` is the resident body's. `pools`: whether the body that it stands for has a pooler."""
        super().__init__()
        self.device = device
        self._pools = pools
        self._output: ModelOutput | None = None

    @contextmanager
    def giving(self, output: ModelOutput) -> Iterator[None]:
        """Inside, the body's output is `output`: that of the rows that the head is called with, and no others."""
        # A class that reads its body's output by place must not meet a pooler that its own body lacks.
        if not self._pools and getattr(output, "pooler_output", None) is not None:
            output = replace(output, pooler_output=None)  # type: ignore[type-var]  # every ModelOutput is a dataclass
        self._output = output
        try:
            yield
        finally:
            self._output = None

    def forward(self, *_args: Any, **_kwargs: Any) -> ModelOutput:
        if self._output is None:
            raise RuntimeError("the head was called without its body's output")
        return self._output


def head_modules(model: PreTrainedModel) -> list[str]:
    """The parts of a headed model, beside its body, that have weights: what `modules_to_save` must name."""
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def headed_model(adapter_id: str, task_type: str, config: PreTrainedConfig, body: PreTrainedModel) -> PreTrainedModel:
    """The library's model for the task, on the meta device; its body fits `body`.

    Raises:
        InvalidModel: the library has no such class for the architecture, or `body` lacks a part that the class needs.
        AdapterMismatch: the adapter was trained on a body of another architecture or other sizes.
    """
    if config.model_type != body.config.model_type:
        raise AdapterMismatch(
            f"adapter {adapter_id!r} was trained on another base model: a {config.model_type}, not a "
            f"{body.config.model_type}",
            param="adapter",
        )
    headed_class = HEADED_CLASSES[task_type].get(type(config), None)
    if headed_class is None:
        raise InvalidModel(f"transformers has no {task_type} head for a {config.model_type}", param="adapter")
    config = copy.deepcopy(config)
    # A dtype of the config's own may become torch's default for a moment, in all threads.
    config.dtype = torch.float32
    # The device context holds for this thread alone, and starts no drawing of weights.
    with torch.device("meta"):
        model: PreTrainedModel = headed_class(config)
    if not isinstance(getattr(model, model.base_model_prefix, None), nn.Module):
        raise InvalidModel(
            f"{headed_class.__name__} has no part for its body, so it cannot be served", param="adapter"
        )
    _check_body(adapter_id, model, body)
    return model


def put_stand_in(model: PreTrainedModel, device: torch.device) -> BodyStandIn:
    """Replace the body of a headed model."""
    body = getattr(model, model.base_model_prefix)
    stand_in = BodyStandIn(device, pools=getattr(body, "pooler", None) is not None)
    setattr(model, model.base_model_prefix, stand_in)
    return stand_in


def load_head(
    adapter_id: str,
    model: PreTrainedModel,
    weights: Mapping[str, Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give a headed model, whose body is a stand-in, the weights of its head.

    Raises InvalidRequest for weights that are missing, unknown, of another shape, or too large for `dtype`.
    """
    expected = model.state_dict()
    if missing := sorted(expected.keys() - weights.keys()):
        raise refusal(
            adapter_id,
            f"it lacks the weights {', '.join(missing)} of its head; train it with modules_to_save = "
            f"{head_modules(model)}",
        )
    if unknown := sorted(weights.keys() - expected.keys()):
        raise refusal(
            adapter_id, f"it brings {', '.join(unknown)}, which is no part of {type(model).__name__}'s head"
        )
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            raise refusal(
                adapter_id,
                f"{name} has the shape {tuple(weight.shape)}, but by config.json it is {tuple(expected[name].shape)}",
            )
        if not torch.isfinite(weight.to(dtype)).all():
            raise refusal(adapter_id, f"its weights of {name} overflow {dtype}")
    model.load_state_dict({name: weight.to(device, dtype) for name, weight in weights.items()}, assign=True)
    model.eval().requires_grad_(False)


def _check_body(adapter_id: str, model: PreTrainedModel, body: PreTrainedModel) -> None:
    """Refuse a resident body that is not the one that the headed model has."""
    resident = {name: weight.shape for name, weight in body.state_dict().items()}
    for name, weight in getattr(model, model.base_model_prefix).state_dict().items():
        if name not in resident:
            raise InvalidModel(
                f"adapter {adapter_id!r} cannot be served on this base model: {type(model).__name__} reads its "
                f"body's {name}, which the resident {type(body).__name__} does not have",
                param="adapter",
            )
        if resident[name] != weight.shape:
            raise AdapterMismatch(
                f"adapter {adapter_id!r} was trained on another base model: {name} has the shape "
                f"{tuple(weight.shape)} there, {tuple(resident[name])} here",
                param="adapter",
            )
