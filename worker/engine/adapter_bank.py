"""The adapter slots' tensors, and the step's choice of a slot for each row."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tandem.errors import AdapterMismatch, InvalidRequest
from worker.engine.adapter_weights import AdapterWeights
from worker.engine.linear import AdapterLinear, AdapterPairs

BASE = -1
"""The adapter slot of a row that runs the base model."""


class AdapterBank:
    """Holds `slots` adapters of rank up to `rank` for the linear layers of one model."""

    def __init__(self, *, slots: int, rank: int) -> None:
        self.slots = slots
        self.rank = rank
        self.linears: dict[str, AdapterLinear] = {}
        self.active: frozenset[int] = frozenset()
        """The adapter slots that rows of the current step use; empty outside a step."""
        self._row_slots = self._head_slots = torch.empty(0, dtype=torch.int64)
        self._masks: dict[tuple[int, int, bool], torch.Tensor] = {}
        self._runs: list[tuple[int, int]] = []

    def take_over(self, model: nn.Module, head: nn.Module | None) -> None:
        """Replace every `nn.Linear` of the model in place; `head` is the layer that makes the logits."""
        for path, linear in list(model.named_modules()):
            if type(linear) is nn.Linear:
                replacement = AdapterLinear(linear, self, is_head=linear is head)
                replacement.train(linear.training)
                parent_path, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent_path), name, replacement)
                self.linears[path] = replacement

    def check(self, adapter: AdapterWeights) -> None:
        """Raise unless the adapter fits: InvalidRequest for its rank, AdapterMismatch for its shapes."""
        if self.slots == 0:
            raise InvalidRequest("this worker serves no adapters (its adapter_slots is 0)", param="adapter")
        if adapter.rank > self.rank:
            raise InvalidRequest(
                f"adapter {adapter.id!r} has rank {adapter.rank}; this worker serves ranks up to {self.rank}",
                param="adapter",
            )
        for path, pair in adapter.modules.items():
            linear = self.linears.get(path)
            if linear is None:
                raise AdapterMismatch(
                    f"adapter {adapter.id!r} changes {path}, which is no linear layer of the model", param="adapter"
                )
            pair.check_fits(adapter.id, path, linear)

    def load(self, slot: int, adapter: AdapterWeights) -> None:
        """Copy an adapter's weights into a slot, in place of what was there.

        Raises InvalidRequest for weights that overflow the model's dtype; the slot must then not be used.
        """
        for path, linear in self.linears.items():
            pair = adapter.modules.get(path)
            if pair is None and (linear.pairs is None or slot not in linear.pairs.filled):
                continue
            if linear.pairs is None:
                linear.pairs = self._new_pairs(linear)
            rows = slice(slot * self.rank, (slot + 1) * self.rank)
            linear.pairs.a[rows] = 0
            linear.pairs.b[rows] = 0
            linear.pairs.filled.discard(slot)
            if pair is not None:
                rows = slice(rows.start, rows.start + pair.rank)
                linear.pairs.a[rows] = self._finite(adapter.id, path, pair.a.float(), linear.weight.dtype)
                scaled = pair.b.float() * pair.scaling
                linear.pairs.b[rows] = self._finite(adapter.id, path, scaled, linear.weight.dtype).t()
                linear.pairs.filled.add(slot)

    @contextmanager
    def step(self, row_slots: list[int], head_rows: list[int], device: torch.device) -> Iterator[None]:
        """For the forward inside, row i uses adapter slot `row_slots[i]` (or `BASE`).

        `head_rows` are the rows that the logits are made of.
        """
        active = frozenset(row_slots) - {BASE}
        if active:
            self._row_slots = torch.tensor(row_slots, device=device)
            self._head_slots = torch.tensor([row_slots[row] for row in head_rows], device=device)
        self.active = active
        try:
            yield
        finally:
            self.active = frozenset()
            self._masks.clear()

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

    def foreign(self, first: int, end: int, *, head: bool) -> torch.Tensor:
        """[rows, (end - first) * rank], bool: True where a rank belongs to another adapter than the row's."""
        key = (first, end, head)
        if key not in self._masks:
            row_slots = self._head_slots if head else self._row_slots
            slots = torch.arange(first, end, device=row_slots.device).repeat_interleave(self.rank)
            self._masks[key] = slots != row_slots[:, None]
        return self._masks[key]

    @staticmethod
    def _finite(adapter_id: str, path: str, weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weights in the model's dtype. An infinite B would reach every row: 0 * inf is NaN."""
        converted = weights.to(dtype)
        if not torch.isfinite(converted).all():
            raise InvalidRequest(
                f"adapter {adapter_id!r} cannot be served: its weights of {path} overflow {dtype}", param="adapter"
            )
        return converted

    def _new_pairs(self, linear: AdapterLinear) -> AdapterPairs:
        rows = self.slots * self.rank
        return AdapterPairs(
            a=linear.weight.new_zeros(rows, linear.in_features, requires_grad=False),
            b=linear.weight.new_zeros(rows, linear.out_features, requires_grad=False),
        )
