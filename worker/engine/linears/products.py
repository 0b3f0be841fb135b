"""What computes the linear layers of a resident model: chosen once for each, when the model is loaded."""

import logging
from collections.abc import Mapping

import torch
from torch import nn

from worker.engine.adapters.bank import AdapterBank
from worker.engine.adapters.linear import AdapterLinear
from worker.engine.adapters.linear_update import has_four_bits
from worker.engine.kernels.choice import Kernels
from worker.engine.linears.fused import FusedProduct, same_input_groups
from worker.engine.linears.int8 import Int8Product, int8_fault
from worker.engine.linears.packed import PackedProduct, packing_fault

log = logging.getLogger(__name__)

QUANTIZED_WEIGHTS = 4 * 2**20
"""Of a layer, at least, to be quantized. With fewer, rounding the inputs in every call costs more than reading half
the bytes saves: in decode steps 8 bits broke even between 1.8 and 4 million weights (bench/linears.py)."""


def choose_product(
    weight: torch.Tensor, bias: torch.Tensor | None, *, quantize: bool, kernels: Kernels | None = None
) -> PackedProduct | Int8Product | None:
    """A faster product of the layer than `F.linear`; None where there is none.

    `weight` has shape [out_features, in_features]. `quantize` asks for 8-bit integers where they are faster; they
    change the model's answers a little. `kernels` multiply few rows faster, where there are some. What is made holds
    a copy of the weight (`bytes`), so the weight must not change any more.
    """
    if weight.device.type != "cpu":
        return None
    if quantize and weight.numel() >= QUANTIZED_WEIGHTS and int8_fault() is None:
        return Int8Product(weight, bias)
    if packing_fault(weight.dtype) is None:
        return PackedProduct(weight, bias, kernels)
    return None


def speed_up(linears: Mapping[str, nn.Module], *, quantize: bool = False, kernels: Kernels | None = None) -> int:
    """Give each `AdapterLinear` of `linears` (by their paths in the model) the fastest product that there is.

    Layers that read the same input share one. The layers' own weights stay as they are: a twin trains over them.
    Returns the bytes of the copies made, in the model's memory from now on: about those of the layers' weights, and
    half of a bfloat16 layer's that is quantized; 0 where nothing is faster.
    """
    layers = {
        path: layer
        for path, layer in linears.items()
        if isinstance(layer, AdapterLinear) and not has_four_bits(layer)
    }
    made = sum(_speed_up_group([layers[path] for path in group], quantize, kernels) for group in _groups(layers))
    log.info("%d linear layers with %d bytes of packed copies", len(layers), made)
    return made


def speed_up_encoder(model: nn.Module) -> int:
    """The same for a model that no engine takes over; a bank of adapters may take over its layers later.

    In bfloat16 alone, where its outputs stay the same bits: in fp32 their last bits would differ from the library's.
    """
    if next(model.parameters()).dtype != torch.bfloat16:
        return 0
    bank = AdapterBank(slots=0, rank=1)
    bank.take_over(model, head=None)
    return speed_up(bank.linears)


def _groups(layers: Mapping[str, AdapterLinear]) -> list[tuple[str, ...]]:
    """The paths, grouped where the layers' weights can be joined."""
    groups: list[tuple[str, ...]] = []
    for group in same_input_groups(layers):
        kinds = {(layers[path].in_features, layers[path].weight.dtype, _bias(layers[path]) is None) for path in group}
        groups += [group] if len(kinds) == 1 else [(path,) for path in group]
    return groups


def _bias(layer: AdapterLinear) -> torch.Tensor | None:
    """torch's annotation says that every layer has one."""
    return layer.bias


def _speed_up_group(layers: list[AdapterLinear], quantize: bool, kernels: Kernels | None) -> int:
    """Returns the bytes of the copy made."""
    weights: list[torch.Tensor] = [layer.weight for layer in layers]
    biases = [bias for layer in layers if (bias := _bias(layer)) is not None]
    product = choose_product(
        weights[0] if len(weights) == 1 else torch.cat(weights),
        torch.cat(biases) if biases else None,
        quantize=quantize,
        kernels=kernels,
    )
    if product is None:
        return 0
    if len(layers) == 1:
        layers[0].product = product
    else:
        fused = FusedProduct(product, [layer.out_features for layer in layers])
        for layer, part in zip(layers, fused.parts(), strict=True):
            layer.product = part
    return product.bytes
