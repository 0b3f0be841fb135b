"""Refuses a checkpoint without the head that its task needs: the library fills one in at random, and goes on."""

from torch import nn
from transformers import PreTrainedModel

from tandem.errors import InvalidModel

LOADED = "_is_hf_initialized"
"""The attribute by which transformers 5 marks the tensors that came from the files. (`output_loading_info` says the
same, but not through a pipeline.)"""
NAMES_TOLD = 3
"""Of the missing weights, in the error."""


def check_head(name: str, task: str, model: nn.Module) -> None:
    """Raise InvalidModel if the head of a model that was loaded for `task` came from no file.

    What its body lacks is let pass: checkpoints leave out what serving does not use, such as a pooler.
    """
    missing = missing_head(model)
    if missing:
        told = ", ".join(missing[:NAMES_TOLD]) + (", …" if len(missing) > NAMES_TOLD else "")
        raise InvalidModel(
            f"model {name!r} has no head for {task}: its files lack {told}, and random weights would answer. "
            "Catalogue it for the tasks that it was trained for, or fine-tune an adapter on it, which brings a head",
            param="model",
        )


def missing_head(model: nn.Module) -> list[str]:
    """The parameters beside the model's body that came from no file."""
    if not isinstance(model, PreTrainedModel) or model.base_model is model:
        return []
    body = {id(parameter) for parameter in model.base_model.parameters()}
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) not in body and not getattr(parameter, LOADED, False)
    ]
