"""The adapter slots of one linear layer: what is loaded into them, and how a step's rows take their own."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from worker.engine.adapters.grouped_update import grouping_fault, with_grouped_update
from worker.engine.adapters.linear_update import LinearLayer, LinearUpdate, layer_dtype, layer_sizes
from worker.engine.adapters.slot_tables import PairTable, ScaleTable

if TYPE_CHECKING:
    from worker.engine.adapters.bank import AdapterBank

Product = Callable[[torch.Tensor], torch.Tensor]
"""The base layer: [..., in_features] to [..., out_features], bias included."""

ROWS_AN_ADAPTER = 32
"""Rows for each adapter of a step up to which the kernel is faster than products of all rows with all adapters, which
use the processor better but compute most in vain (docs/decisions/0015)."""


class LayerSlots:
    """Holds each slot's `LinearUpdate` of one layer; a table is made when an adapter first needs it.

    The tensors are no Parameters and no buffers: the layer's `state_dict` stays that of the plain layer, so that a
    twin can be made of it.
    """

    def __init__(self, layer: LinearLayer, bank: "AdapterBank", *, is_head: bool) -> None:
        """`is_head`: the layer makes the logits, and so sees only those rows of a step that emit a token."""
        self._layer = layer
        self._bank = bank
        self._is_head = is_head
        self._inputs, self._outputs = layer_sizes(layer)
        self._pairs: PairTable | None = None
        self._input_scales: ScaleTable | None = None
        self._output_scales: ScaleTable | None = None
        self._is_grouped = False
        """Whether the pairs run as grouped products: found out by a trial when the first pair comes, on a GPU."""
        self.in_use = False
        """Whether any adapter has ever had an update for this layer: most adapters target a few layers only."""

    @property
    def has_pairs(self) -> bool:
        """Whether any slot has ever held a pair."""
        return self._pairs is not None

    @property
    def bytes(self) -> int:
        """Of the tables that there are."""
        tables = (self._pairs, self._input_scales, self._output_scales)
        return sum(table.bytes for table in tables if table is not None)

    def put(self, slot: int, update: LinearUpdate | None) -> None:
        """Copy an adapter's update into a slot in place of what was there; None empties it."""
        if update is None and not self.in_use:
            return
        self.in_use = True
        update = update or LinearUpdate()
        if update.a is not None and update.b is not None:
            if self._pairs is None:
                self._pairs = self._new_pairs()
            self._pairs.put(slot, update.a, update.b)
        elif self._pairs is not None:
            self._pairs.clear(slot)
        self._input_scales = self._put_scale(self._input_scales, self._inputs, slot, update.input_scale, None)
        self._output_scales = self._put_scale(
            self._output_scales, self._outputs, slot, update.output_scale, update.output_shift
        )

    def adapted(self, layer_input: torch.Tensor, product: Product) -> torch.Tensor:
        """The layer's output for `layer_input` [..., rows, in_features], each row with the update of its slot.

        A row without an update comes out as it does without any adapter in the step, bit for bit.
        """
        if self._bank.has_runs:
            return self._adapted_in_runs(layer_input, product)
        active, row_slots = self._bank.active, self._bank.row_slots(head=self._is_head)
        if self._input_scales is not None and self._input_scales.filled & active:
            rows = layer_input.reshape(-1, self._inputs)
            layer_input = self._input_scales.scaled(rows, row_slots).view(layer_input.shape)
        output = product(layer_input)
        if self._pairs is not None and (self._bank.takes_any or not self._pairs.ranks.keys().isdisjoint(active)):
            output = self._with_pairs(layer_input, output, self._pairs)
        if self._output_scales is not None and self._output_scales.filled & active:
            rows = output.view(-1, self._outputs)
            output = self._output_scales.scaled(rows, row_slots).view(output.shape)
        return output

    def _with_pairs(self, layer_input: torch.Tensor, output: torch.Tensor, pairs: PairTable) -> torch.Tensor:
        """All adapters of the step in one pair of products.

        Each row is multiplied with the A of all of them, and all but its own adapter's part is set to 0 before B.
        Setting, not multiplying: 0 * inf is NaN, and one adapter's overflow must not reach another's rows.
        """
        if self._is_grouped:
            rows, groups = layer_input.reshape(-1, self._inputs), self._bank.groups(head=self._is_head)
            return with_grouped_update(rows, output.view(-1, self._outputs), pairs.a, pairs.b, groups).view(
                output.shape
            )
        kernels = self._bank.kernels
        if kernels is not None and self._is_for_kernel(layer_input, output):
            kernels.add_pairs(
                layer_input.reshape(-1, self._inputs),
                output.view(-1, self._outputs),
                pairs.a,
                pairs.b,
                self._bank.row_slots(head=self._is_head),
                pairs.rank_of_slot,
                pairs.largest,
            )
            return output
        joined = pairs.whole() if self._bank.takes_any else pairs.joined(pairs.ranks.keys() & self._bank.active)
        low = torch.mm(layer_input.reshape(-1, self._inputs), joined.a.t())
        low.masked_fill_(self._bank.foreign(joined.ranks, head=self._is_head), 0)
        return torch.addmm(output.view(-1, self._outputs), low, joined.b).view(output.shape)

    def _is_for_kernel(self, layer_input: torch.Tensor, output: torch.Tensor) -> bool:
        return (
            layer_input.numel() <= ROWS_AN_ADAPTER * len(self._bank.active) * self._inputs
            and layer_input.dtype == output.dtype == layer_dtype(self._layer)
            and layer_input.stride(-1) == output.stride(-1) == 1
            and not output.requires_grad
        )

    def _adapted_in_runs(self, layer_input: torch.Tensor, product: Product) -> torch.Tensor:
        """Each adapter's update for its own run of rows: no other adapter's rank costs anything there."""
        rows = layer_input.reshape(-1, self._inputs)
        runs = [(slot, run) for slot, run in self._bank.runs(len(rows)) if slot in self._bank.active]
        if self._input_scales is not None and (scaled := self._input_scales.filled & self._bank.active):
            rows = rows.clone()  # the input is another layer's too
            for slot, run in runs:
                if slot in scaled:
                    rows[run] = self._input_scales.scaled(rows[run], slot)
            layer_input = rows.view(layer_input.shape)
        output = product(layer_input)
        flat = output.view(-1, self._outputs)
        for slot, run in runs:
            if self._pairs is not None and slot in self._pairs.ranks:
                own = self._pairs.own(slot)
                flat[run].addmm_(torch.mm(rows[run], self._pairs.a[own].t()), self._pairs.b[own])
            if self._output_scales is not None and slot in self._output_scales.filled:
                flat[run] = self._output_scales.scaled(flat[run], slot)
        return output

    def _new_pairs(self) -> PairTable:
        dtype, device = layer_dtype(self._layer), self._layer.weight.device
        fault = grouping_fault(dtype, device, self._bank.rank, self._inputs, self._outputs)
        self._is_grouped = fault is None
        return PairTable(
            slots=self._bank.slots,
            rank=self._bank.rank,
            inputs=self._inputs,
            outputs=self._outputs,
            dtype=dtype,
            device=device,
        )

    def _put_scale(
        self,
        table: ScaleTable | None,
        features: int,
        slot: int,
        factors: torch.Tensor | None,
        shifts: torch.Tensor | None,
    ) -> ScaleTable | None:
        if factors is None:
            if table is not None:
                table.clear(slot)
            return table
        if table is None:
            table = ScaleTable(slots=self._bank.slots, features=features, device=self._layer.weight.device)
        table.put(slot, factors, shifts)
        return table
