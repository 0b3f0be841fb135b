"""Weights drawn so that a tiny model's answers are far apart: no test hangs on a tie."""

import torch
from torch import nn

GAIN = 1.5
"""Spread of a layer's output for inputs of unit variance: 1 keeps the signal; the usual 0.02 would flatten it."""


def redraw(model: nn.Module, seed: int, *, gain: float = GAIN) -> None:
    """Draws every weight of `model` anew, in place, from a generator of its own.

    Matrices and kernels get a spread of gain / sqrt(inputs), embeddings and other tables 1, biases 0.1; norms,
    running statistics, scalars (a temperature) and weight-normed kernels keep the values that the library gave them.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {
        id(module.weight): gain / (module.weight[0].numel() ** 0.5)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and isinstance(module.weight, nn.Parameter)
    }
    norms = {
        id(weight)
        for module in model.modules()
        if "Norm" in type(module).__name__
        for weight in module.parameters(recurse=False)
    }
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if id(weight) in norms or weight.ndim == 0 or "parametrizations" in name:
                continue
            spread = layers.get(id(weight), 0.1 if weight.ndim == 1 else 1.0)
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
