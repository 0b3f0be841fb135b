"""The linear layers of a resident model: the base weight, and an adapter's update chosen for each row."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from worker.engine.adapters.layer_slots import LayerSlots, Product
from worker.engine.adapters.linear_update import has_four_bits

if TYPE_CHECKING:
    from worker.engine.adapters.bank import AdapterBank


class AdapterLinear(nn.Linear):
    """Takes the place of an `nn.Linear`, or of another bank's, in the resident tree, over the same Parameters."""

    def __init__(self, linear: nn.Linear, bank: "AdapterBank", *, is_head: bool) -> None:
        """`is_head`: it makes the logits, and so sees only those rows of a step that emit a token."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.slots = LayerSlots(self, bank, is_head=is_head)
        self.product: Product | None = linear.product if isinstance(linear, AdapterLinear) else None
        if self.product is None and has_four_bits(linear):
            self.product = linear.forward
        """What computes the base layer in place of `F.linear`, if anything does: the same, in a faster way."""
        self._bank = bank

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's name for it
        """`input` has shape [..., rows, in_features]."""
        if self._bank.active and self.slots.in_use:
            return self.slots.adapted(input, self._product)
        return self._product(input)

    def _product(self, layer_input: torch.Tensor) -> torch.Tensor:
        if self.product is not None:
            return self.product(layer_input)
        return F.linear(layer_input, self.weight, self.bias)


class AdapterConv1D(Conv1D):
    """Takes the place of GPT-2's `Conv1D`, a linear layer that stores its weight as [in_features, out_features]."""

    def __init__(self, conv: Conv1D, bank: "AdapterBank", *, is_head: bool) -> None:
        nn.Module.__init__(self)  # Conv1D's own would draw a weight at random
        self.nx, self.nf = conv.nx, conv.nf
        self.weight = conv.weight
        self.bias = conv.bias
        self.slots = LayerSlots(self, bank, is_head=is_head)
        self._bank = bank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` has shape [..., rows, in_features]."""
        if self._bank.active and self.slots.in_use:
            return self.slots.adapted(x, self._product)
        return self._product(x)

    def _product(self, layer_input: torch.Tensor) -> torch.Tensor:
        output = torch.addmm(self.bias, layer_input.reshape(-1, self.nx), self.weight)
        return output.view(*layer_input.shape[:-1], self.nf)
