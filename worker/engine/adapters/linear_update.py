"""What one adapter does to one linear layer, ready to be copied into an adapter slot."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tandem.errors import AdapterMismatch

LinearLayer = nn.Linear | Conv1D
"""The layers that adapters update. GPT-2's Conv1D is a linear layer that stores its weight as [in, out]."""


@dataclass(frozen=True, eq=False)
class LinearUpdate:
    """y = output_scale * (W (input_scale * x) + bias + b^T a (input_scale * x)) + output_shift.

    What is None is left out. The tensors are on the host, in the form in which a slot holds them, so that loading
    them is copying and nothing else.

    LoRA (Hu et al. 2021) has `a` and `b`; IA3 (Liu et al. 2022) a scale of the inputs or of the outputs; DoRA (Liu
    et al. 2024) all but the scale of the inputs.
    """

    a: torch.Tensor | None = None
    """[rank, in_features] in the layer's dtype."""
    b: torch.Tensor | None = None
    """[rank, out_features] in the layer's dtype: transposed, and with the adapter's scaling in it."""
    input_scale: torch.Tensor | None = None
    """[in_features], float32: trained scales are near 1, where bfloat16 has steps of 0.8 %."""
    output_scale: torch.Tensor | None = None
    """[out_features], float32."""
    output_shift: torch.Tensor | None = None
    """[out_features], float32; only beside `output_scale`. DoRA scales the product without the bias: its shift gives
    back what the scale takes from the bias."""

    @property
    def rank(self) -> int:
        """Rows of `a`; 0 without a pair."""
        return 0 if self.a is None else self.a.shape[0]

    def check_fits(self, adapter_id: str, path: str, layer: LinearLayer) -> None:
        """Raise AdapterMismatch unless the layer at `path` has the sizes that the update was read for."""
        for tensor in (self.a, self.input_scale):
            if tensor is not None:
                check_sizes(adapter_id, path, layer, inputs=tensor.shape[-1])
        for tensor in (self.b, self.output_scale):
            if tensor is not None:
                check_sizes(adapter_id, path, layer, outputs=tensor.shape[-1])


def layer_sizes(layer: LinearLayer) -> tuple[int, int]:
    """(in_features, out_features)"""
    if isinstance(layer, Conv1D):
        return int(layer.nx), int(layer.nf)
    return layer.in_features, layer.out_features


def has_four_bits(layer: nn.Module) -> bool:
    """Whether the layer's weight is quantized to 4 bits: one of bitsandbytes, or one that stands for it."""
    return isinstance(layer, nn.Linear) and hasattr(layer.weight, "quant_state")


def layer_dtype(layer: LinearLayer) -> torch.dtype:
    """What the layer computes in: the dtype of its weight, or of that which 4 bits stand for."""
    dtype: torch.dtype = getattr(layer.weight, "quant_state", layer.weight).dtype
    return dtype


def linear_layers(model: nn.Module) -> dict[str, LinearLayer]:
    """Every layer that an adapter may update, by its path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}


def check_sizes(
    adapter_id: str, path: str, layer: LinearLayer, *, inputs: int | None = None, outputs: int | None = None
) -> None:
    """Raise AdapterMismatch unless the layer at `path` has these features; None stands for any number."""
    of_layer = layer_sizes(layer)
    for name, found, expected in (("in", inputs, of_layer[0]), ("out", outputs, of_layer[1])):
        if found not in (None, expected):
            raise AdapterMismatch(
                f"adapter {adapter_id!r} was trained on another base model: its update of {path} has {found} "
                f"{name}_features, the model's layer has {expected}",
                param="adapter",
            )


def check_is_layer(adapter_id: str, path: str, layer: LinearLayer | None) -> LinearLayer:
    """The layer; raises AdapterMismatch if there is none at `path`."""
    if layer is None:
        raise AdapterMismatch(
            f"adapter {adapter_id!r} changes {path}, which is no linear layer of the model", param="adapter"
        )
    return layer
