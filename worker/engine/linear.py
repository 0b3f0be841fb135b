"""The linear layer of a resident model: the base weight, and a low-rank update chosen for each token."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from worker.engine.adapter_bank import AdapterBank


@dataclass
class AdapterPairs:
    """The A and B of every adapter slot for one linear layer, as two matrices.

    `rank` consecutive rows belong to a slot; those that an adapter of lower rank leaves over are zero, and so are
    all of a slot whose adapter does not target this layer. B holds the adapter's scaling already.
    """

    a: torch.Tensor
    """[slots * rank, in_features]"""
    b: torch.Tensor
    """[slots * rank, out_features]: transposed, so that it multiplies from the right."""
    filled: set[int] = field(default_factory=set)
    """The slots whose adapter targets this layer."""


class AdapterLinear(nn.Linear):
    """Takes the place of an `nn.Linear` in the resident tree, over the same Parameters.

    The adapters' tensors are no Parameters and no buffers: `state_dict` is that of the plain layer, so that a twin
    can be made of it.
    """

    def __init__(self, linear: nn.Linear, bank: "AdapterBank", *, is_head: bool) -> None:
        """`is_head`: it makes the logits, and so sees only those rows of a step that emit a token."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.is_head = is_head
        self.pairs: AdapterPairs | None = None
        """None until the first adapter that targets this layer: most adapters target a few layers only."""
        self._bank = bank

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's name for it
        """`input` has shape [..., rows, in_features]."""
        output = F.linear(input, self.weight, self.bias)
        if self.pairs is None or not (slots := self.pairs.filled & self._bank.active):
            return output
        if self._bank.has_runs:
            return self._with_runs(input, output, self.pairs, slots)
        # All adapters of the step in one pair of products: each row is multiplied with the A of every slot in the
        # span, and all but its own adapter's part is set to 0 before B. Setting, not multiplying: 0 * inf is NaN,
        # and one adapter's overflow must not reach another's rows.
        first, end = min(slots), max(slots) + 1
        ranks = slice(first * self._bank.rank, end * self._bank.rank)
        rows = input.reshape(-1, self.in_features)
        low = torch.mm(rows, self.pairs.a[ranks].t())
        low.masked_fill_(self._bank.foreign(first, end, head=self.is_head), 0)
        return torch.addmm(output.view(-1, self.out_features), low, self.pairs.b[ranks]).view(output.shape)

    def _with_runs(
        self, layer_input: torch.Tensor, output: torch.Tensor, pairs: AdapterPairs, slots: frozenset[int] | set[int]
    ) -> torch.Tensor:
        """Add each adapter's part to its own run of rows: no other adapter's rank costs anything there."""
        rows = layer_input.reshape(-1, self.in_features)
        flat = output.view(-1, self.out_features)
        for slot, run in self._bank.runs(len(rows)):
            if slot in slots:
                ranks = slice(slot * self._bank.rank, (slot + 1) * self._bank.rank)
                flat[run].addmm_(torch.mm(rows[run], pairs.a[ranks].t()), pairs.b[ranks])
        return output
