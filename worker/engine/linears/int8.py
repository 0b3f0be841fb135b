"""A linear layer's product in 8-bit integers: half of a bfloat16 weight's bytes to read, twice its products a second.

Weights are rounded to int8 with one scale for each output, inputs to uint8 with one scale for each row, as in
LLM.int8() (Dettmers et al. 2022) without its outlier columns. One scale for the whole input would be cheaper, but the
company in a batch would then change a sequence's text; with one for each row, integer sums make the product of a row
the same bits in any batch. The operations are private to torch, so they are tried out first.
"""

import functools
import logging

import torch

log = logging.getLogger(__name__)

LARGEST = 127
"""Of the codes' absolute values: symmetric, so that 0 is exact and -128 is not used."""

ZERO_POINT = 128
"""The input's code for 0: the processors' 8-bit products take unsigned inputs and signed weights."""

SMALLEST_SCALE = 1e-20
"""Keeps rows and weights of nothing but 0 from 0 / 0; far below any scale that matters."""

TRIAL_SIZES = (33, 64, 5)
"""The trial's outputs, inputs and rows."""


@functools.cache
def int8_fault() -> str | None:
    """Why this torch on this processor cannot multiply in 8 bits exactly and fast; None when it can.

    Found out once: by the processor's features, since without them oneDNN falls back to loops that are hundreds of
    times slower, and by a product of the largest codes, which saturates on processors that add pairs in 16 bits.
    """
    fault = _try_out()
    if fault is not None:
        log.warning("linear layers are not quantized to int8: %s", fault)
    return fault


class Int8Product:
    """input [..., in_features] to output [..., out_features] in the input's dtype, with the bias: nearly F.linear."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Makes an int8 copy of `weight` ([out_features, in_features], on the CPU), which must not change any more.

        Only without an `int8_fault`.
        """
        exact = weight.detach().float()
        self._scales = (exact.abs().amax(dim=1) / LARGEST).clamp_(min=SMALLEST_SCALE)
        codes = (exact / self._scales[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(codes, None)
        self._zero_points = torch.zeros(len(codes), dtype=torch.int32)
        self._bias = None if bias is None else bias.detach()
        self.bytes: int = codes.nbytes + self._scales.nbytes + self._zero_points.nbytes
        """Of the copy."""

    def __call__(self, layer_input: torch.Tensor) -> torch.Tensor:
        """A row that is not finite gives a row that is not, and changes no other.

        Raises RuntimeError for an input that wants a gradient: it would silently get none.
        """
        if layer_input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("a quantized linear layer only serves; train in a twin")
        rows = layer_input.reshape(-1, layer_input.shape[-1])
        scales = rows.abs().amax(dim=1, keepdim=True).float().div_(LARGEST).clamp_(min=SMALLEST_SCALE)
        codes = (rows / scales).round_().add_(ZERO_POINT).to(torch.uint8)
        output = _multiply(codes, self._packed, self._scales, self._zero_points).mul_(scales).to(layer_input.dtype)
        if self._bias is not None:
            output += self._bias
        return output.view(*layer_input.shape[:-1], len(self._scales))


def _multiply(
    codes: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor
) -> torch.Tensor:
    """[rows, outputs], float32: the integer product times each output's scale; the rows' scales are left to do."""
    whole = 1.0
    product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, whole, ZERO_POINT, packed, scales, zero_points, None, whole, 0, torch.float32, "none", [], ""
    )
    return product


def _try_out() -> str | None:
    features = torch.cpu.get_capabilities()
    if not any(features.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
        return "this processor has no 8-bit products (VNNI or AMX)"
    outputs, inputs, rows = TRIAL_SIZES
    weight = torch.full((outputs, inputs), float(LARGEST))
    layer_input = torch.full((rows, inputs), float(LARGEST))
    try:
        found = Int8Product(weight, None)(layer_input)
    except (AttributeError, RuntimeError, TypeError) as error:  # no such operation, not for this CPU, other arguments
        return f"torch {torch.__version__} has no such product here: {error}"
    expected = float(LARGEST * LARGEST * inputs)
    if not bool((found == expected).all()):
        return f"8-bit sums overflow here: {expected:g} came out as {float(found.flatten()[0]):g}"
    return None
