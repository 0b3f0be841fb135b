"""The adapter slots' tensors, and the step's choice of a slot for each row."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tandem.errors import InvalidRequest
from worker.engine.adapters.grouped_update import GroupedRows, group_rows
from worker.engine.adapters.linear import AdapterConv1D, AdapterLinear
from worker.engine.adapters.linear_update import check_is_layer, has_four_bits
from worker.engine.adapters.slot_tables import Ranks
from worker.engine.adapters.weights import AdapterWeights
from worker.engine.kernels.choice import Kernels

BASE = -1
"""The adapter slot of a row that runs the base model."""


class AdapterBank:
    """Holds `slots` adapters of rank up to `rank` for the linear layers of one model."""

    def __init__(self, *, slots: int, rank: int) -> None:
        self.slots = slots
        self.rank = rank
        self.kernels: Kernels | None = None
        """They add pairs to few rows, where there are some."""
        self.linears: dict[str, AdapterLinear | AdapterConv1D] = {}
        """The layers that adapters may update, by their paths."""
        self.active: frozenset[int] = frozenset()
        """The adapter slots that rows of the current step use; empty outside a step."""
        self.takes_any = False
        """Whether the current step is recorded for later ones, whose rows may use any slots."""
        self.scaled: set[int] = set()
        """The adapter slots whose adapter scales features."""
        self.paired_layers = 0
        """Layers that have held a pair; it only grows."""
        self._slots_of_rows: dict[bool, list[int]] = {}
        self._groups: dict[bool, GroupedRows] = {}
        self._row_slots = self._head_slots = torch.empty(0, dtype=torch.int64)
        self._masks: dict[tuple[Ranks, bool], torch.Tensor] = {}
        self._runs: list[tuple[int, int]] = []

    @property
    def bytes(self) -> int:
        """Of the tables that adapters have needed so far. May be read from any thread."""
        return sum(linear.slots.bytes for linear in self.linears.values())

    def take_over(self, model: nn.Module, head: nn.Module | None) -> None:
        """Replace every linear layer of the model in place; `head` is the layer that makes the logits."""
        for path, layer in list(model.named_modules()):
            replacement: AdapterLinear | AdapterConv1D
            if isinstance(layer, nn.Linear) and (type(layer) in (nn.Linear, AdapterLinear) or has_four_bits(layer)):
                replacement = AdapterLinear(layer, self, is_head=layer is head)
            elif type(layer) is Conv1D:
                replacement = AdapterConv1D(layer, self, is_head=layer is head)
            else:
                continue
            replacement.train(layer.training)
            parent_path, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent_path), name, replacement)
            self.linears[path] = replacement

    def check(self, adapter: AdapterWeights) -> None:
        """Raise unless the adapter fits: InvalidRequest for its rank, AdapterMismatch for its shapes."""
        if self.slots == 0 and adapter.prefix is None:
            raise InvalidRequest("this worker serves no adapters (its adapter_slots is 0)", param="adapter")
        if adapter.rank > self.rank:
            raise InvalidRequest(
                f"adapter {adapter.id!r} has rank {adapter.rank}; this worker serves ranks up to {self.rank} "
                "(its adapter_rank)",
                param="adapter",
            )
        for path, update in adapter.modules.items():
            update.check_fits(adapter.id, path, check_is_layer(adapter.id, path, self.linears.get(path)))

    def load(self, slot: int, adapter: AdapterWeights) -> None:
        """Copy an adapter's weights into a slot, in place of what was there.

        If it raises, the slot must not be used before a load succeeds.
        """
        for path, linear in self.linears.items():
            linear.slots.put(slot, adapter.modules.get(path))
        self.paired_layers = sum(linear.slots.has_pairs for linear in self.linears.values())
        self.scaled.discard(slot)
        if any(each.input_scale is not None or each.output_scale is not None for each in adapter.modules.values()):
            self.scaled.add(slot)

    @contextmanager
    def step(self, row_slots: list[int], head_rows: list[int], device: torch.device) -> Iterator[None]:
        """For the forward inside, row i uses adapter slot `row_slots[i]` (or `BASE`).

        `head_rows` are the rows that the logits are made of.
        """
        active = frozenset(row_slots) - {BASE}
        if active:
            self._slots_of_rows = {False: row_slots, True: [row_slots[row] for row in head_rows]}
            self._row_slots, self._head_slots = (
                torch.tensor(slots).to(device, non_blocking=True) for slots in self._slots_of_rows.values()
            )
        self.active = active
        try:
            yield
        finally:
            self.active = frozenset()
            self._masks.clear()
            self._groups.clear()

    @contextmanager
    def any_slots(self, row_slots: torch.Tensor, groups: GroupedRows) -> Iterator[None]:
        """For the forward inside, which is recorded, row i uses the slot that `row_slots[i]` holds in each replay.

        Every table there is takes part, whatever it holds now. Each row makes logits. `groups` are the same rows.
        """
        self._row_slots = self._head_slots = row_slots
        self._groups = {False: groups, True: groups}
        self.active, self.takes_any = frozenset(range(self.slots)), True
        try:
            yield
        finally:
            self.active, self.takes_any = frozenset(), False
            self._masks.clear()
            self._groups.clear()

    def groups(self, *, head: bool) -> GroupedRows:
        """The current step's rows by their slots; `head`: those that make the logits."""
        if head not in self._groups:
            self._groups[head] = group_rows(self._slots_of_rows[head], self.slots, self._row_slots.device)
        return self._groups[head]

    @contextmanager
    def step_in_runs(self, runs: list[tuple[int, int]]) -> Iterator[None]:
        """For the forward inside, rows that use one slot stand together: `runs` are (slot or `BASE`, rows), in order.

        A layer may see each row as several in sequence: the tokens of a text. So it does for an encoder, where runs
        are long enough for products of their own; a decoder's `step` has single tokens of many adapters.
        """
        self.active = frozenset(slot for slot, _ in runs) - {BASE}
        self._runs = runs
        try:
            yield
        finally:
            self.active = frozenset()
            self._runs = []

    @property
    def has_runs(self) -> bool:
        """Whether the current step's rows stand in runs."""
        return bool(self._runs)

    def runs(self, rows: int) -> Iterator[tuple[int, slice]]:
        """Each run's slot, and which of a layer's `rows` rows are its own."""
        each, rest = divmod(rows, sum(count for _, count in self._runs))
        if rest:
            raise RuntimeError(f"a layer sees {rows} rows, no multiple of the step's {self._runs}")
        first = 0
        for slot, count in self._runs:
            yield slot, slice(first, first + count * each)
            first += count * each

    def row_slots(self, *, head: bool) -> torch.Tensor:
        """[rows], int64: the slot of each row of the current step; `head`: of the rows that make the logits."""
        return self._head_slots if head else self._row_slots

    def foreign(self, ranks: Ranks, *, head: bool) -> torch.Tensor:
        """[rows, sum of the ranks], bool: True where a rank belongs to another adapter than the row's."""
        key = (ranks, head)
        if key not in self._masks:
            row_slots = self.row_slots(head=head)
            if self.takes_any:  # made on the device: a replay would read the host's memory, which is gone by then
                slots = torch.arange(self.slots, device=row_slots.device).repeat_interleave(self.rank)
            else:
                slots = torch.tensor([slot for slot, rank in ranks for _ in range(rank)])
            self._masks[key] = slots.to(row_slots.device, non_blocking=True) != row_slots[:, None]
        return self._masks[key]
