"""A linear layer's product over a packed weight: the weight in the blocked order that the CPU's product reads.

`F.linear` gets the weight as the checkpoint stores it, and oneDNN rearranges it anew in every call: with the few rows
of a decode step that costs as much as the product. Packed once, the same product gives the same bits in bfloat16 (in
float32 it replaces MKL's, whose last bits differ). The operations are private to torch, so they are tried out first.
"""

import functools
import logging

import torch
import torch.nn.functional as F

from worker.engine.kernels.choice import Kernels, Product

log = logging.getLogger(__name__)

TOLERANCE = {torch.bfloat16: 0.05, torch.float32: 1e-4}
"""By the dtypes that are packed, the largest difference from `F.linear` that the trial accepts: some rounding steps
of its results, whose size is about 8. (torch packs float16 for a few processors only.)"""

FEW_ROWS_TOLERANCE = 0.02
"""Of the largest output of one row, what the kernels' product may be off: some rounding steps of bfloat16."""

TRIAL_SIZES = (33, 64, 5)
"""The trial's outputs, inputs and rows: a whole block of the order and a part of one."""


@functools.cache
def packing_fault(dtype: torch.dtype) -> str | None:
    """Why this torch on this processor cannot multiply with packed weights of `dtype`; None when it can.

    Found out once, by a small product that is compared with `F.linear`. A fault is logged.
    """
    fault = _try_out(dtype)
    if fault is not None:
        log.warning("linear layers in %s run unpacked, and slower: %s", dtype, fault)
    return fault


class PackedProduct:
    """input [..., in_features] to output [..., out_features], with the bias: what `F.linear` computes."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Kernels | None = None) -> None:
        """Copies `weight` ([out_features, in_features], on the CPU), which must not change any more.

        Only for a dtype without a `packing_fault`. The kernels' product serves few rows, where they have one.
        """
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self._bias = None if bias is None else bias.detach()
        self._few_rows, self._few_values = None, 0
        if kernels is not None:
            self._few_rows = self._few_rows_of(kernels, weight.detach())
            self._few_values = kernels.most_rows * weight.shape[1]
        self.bytes: int = self._packed.nbytes
        """Of the copy."""

    def __call__(self, layer_input: torch.Tensor) -> torch.Tensor:
        """Raises RuntimeError for an input that wants a gradient: it would silently get none."""
        if layer_input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("a packed linear layer only serves; train in a twin")
        if self._few_rows is not None and layer_input.numel() <= self._few_values:
            return self._few_rows(layer_input)
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            layer_input, self._packed, self._bias, "none", [], ""
        )
        return output

    def _few_rows_of(self, kernels: Kernels, weight: torch.Tensor) -> Product | None:
        """The kernels' product of this layer; None where oneDNN packed this weight in another order than theirs."""
        # Pairs of inputs: the last of an odd number has none.
        if kernels.few_rows is None or weight.shape[1] % 2:
            return None
        try:
            product = kernels.few_rows(self._packed, weight, self._bias)
        except AttributeError as error:
            log.info("a layer of shape %s keeps oneDNN's product: %s", tuple(weight.shape), error)
            return None
        row = weight[:1]
        expected = self(row)
        if bool((product(row) - expected).abs().max() <= FEW_ROWS_TOLERANCE * expected.abs().max()):
            return product
        log.info("a layer of shape %s keeps oneDNN's product: its weight is in another order", tuple(weight.shape))
        return None


def _try_out(dtype: torch.dtype) -> str | None:
    if dtype not in TOLERANCE:
        return f"weights in {dtype} are not packed"
    if not torch.backends.mkldnn.is_available():
        return "this torch is built without oneDNN"
    outputs, inputs, rows = TRIAL_SIZES
    random = torch.Generator().manual_seed(0)
    weight, bias, layer_input = (
        torch.randn(*size, generator=random).to(dtype) for size in ((outputs, inputs), (outputs,), (rows, inputs))
    )
    try:
        found = PackedProduct(weight, bias)(layer_input)
    except (AttributeError, RuntimeError, TypeError) as error:  # no such operation, not for this CPU, other arguments
        return f"torch {torch.__version__} does not pack them here: {error}"
    difference = float((found.float() - F.linear(layer_input, weight, bias).float()).abs().max())
    if not difference <= TOLERANCE[dtype]:
        return f"the packed product differs from F.linear by {difference:.2g}"
    return None
