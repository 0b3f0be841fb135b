"""A resident encoder without a head, whose rows each run with an adapter of their own."""

import inspect
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from worker.encoders.adapter_planning import plan_forwards
from worker.encoders.encoder_adapter import EncoderAdapter
from worker.engine.adapters.bank import BASE, AdapterBank
from worker.engine.scheduling.adapter_slots import AdapterSlots

PROBE_ROWS, PROBE_TOKENS = 3, 5
"""The shape of the batch that shows which layers see rows: two numbers that no layer's own sizes are."""


@dataclass(frozen=True, slots=True, eq=False)
class BodyRow:
    """One text for the body, and the adapter that it runs with."""

    inputs: Mapping[str, Tensor]
    """By the name of the body's argument, each [tokens]; at least input_ids and attention_mask."""
    adapter: EncoderAdapter | None

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])


class BodyOutput:
    """What the body gave for a padded batch."""

    def __init__(self, output: ModelOutput, order: Sequence[int], lengths: Sequence[int]) -> None:
        """`order`: the places of the rows in the batch, as they stand in `output`.

        `lengths`: tokens of the row at each place, without padding, which stands at the end.
        """
        self._output = output
        self._index = {place: index for index, place in enumerate(order)}
        self._lengths = lengths

    def of(self, places: Sequence[int]) -> ModelOutput:
        """The output of some rows, cut to the longest of them: as of a batch of these alone."""
        longest = max(self._lengths[place] for place in places)
        indexes = [self._index[place] for place in places]

        def cut(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return None  # a cache or the like, which no head reads
            rows = value[indexes]
            return rows[:, :longest] if rows.ndim > 2 else rows

        return type(self._output)(**{name: cut(value) for name, value in self._output.items()})


class AdaptedBody:
    """The body with its adapter slots. Adapters mix row by row, beside rows of the base, in one forward.

    Whoever else runs the body (another batcher) gets the base's output, but must not do so during a forward here:
    both hold the device's serving turn.
    """

    def __init__(self, body: PreTrainedModel, *, adapter_slots: int, adapter_rank: int) -> None:
        """Replaces the body's linear layers in place, over the same weights.

        Room for `adapter_slots` adapters of rank up to `adapter_rank` is taken layer by layer, when an adapter first
        needs it.
        """
        self.body = body.eval()
        self._arguments = frozenset(inspect.signature(body.forward).parameters)
        self._bank = AdapterBank(slots=adapter_slots, rank=adapter_rank)
        self._bank.take_over(body, head=None)
        self._slots = AdapterSlots(adapter_slots)
        self.pinned_adapters: frozenset[str] = frozenset()
        """Adapters that keep their slots from their first use on, as `AdapterSlots.pin` allows. Set by any thread."""
        self._held: dict[int, str] = {}
        """The adapter whose weights are whole in a slot."""
        self._pad_id = getattr(body.config, "pad_token_id", None) or 0
        self._one_forward = threading.Lock()
        self._across_rows = self._layers_across_rows()

    @property
    def resident(self) -> list[str]:
        """Ids of the adapters in slots, the least recently used first."""
        return list(self._slots.resident)

    @property
    def bytes(self) -> int:
        """Of its adapters' tables."""
        return self._bank.bytes

    def check(self, adapter: EncoderAdapter) -> None:
        """Raise unless the adapter fits: InvalidRequest for its rank, AdapterMismatch for its shapes."""
        self._bank.check(adapter.weights)

    def company(self, adapter: EncoderAdapter | None) -> Hashable:
        """Only rows of equal company may share a forward.

        All may, but for an adapter of a layer whose output all rows share: DeBERTa projects its relative positions
        by the layers that project its tokens.
        """
        return adapter.id if adapter is not None and self._is_alone(adapter) else None

    def forwards(self, adapters: Sequence[EncoderAdapter | None]) -> list[list[int]]:
        """The places of a batch's rows that can run in one forward each: one for all, unless slots are too few."""
        self._slots.pin(self.pinned_adapters)
        known = {adapter.id: adapter for adapter in adapters if adapter is not None and adapter.changes_body}
        return plan_forwards(
            [adapter.id if adapter is not None and adapter.id in known else None for adapter in adapters],
            slots=self._bank.slots - len(self._slots.pinned),
            alone={name for name, adapter in known.items() if self._is_alone(adapter)},
        )

    def arguments(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Those of a headed model's inputs that are the body's, of one text: [1, tokens] becomes [tokens]."""
        shape = inputs["input_ids"].shape
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError(f"input_ids have the shape {tuple(shape)}; one text's are [1, tokens]")
        found = {
            name: value[0]
            for name, value in inputs.items()
            if name in self._arguments and isinstance(value, Tensor) and value.shape == shape
        }
        return {"attention_mask": torch.ones_like(found["input_ids"])} | found

    def forward(self, rows: Sequence[BodyRow]) -> BodyOutput:
        """One forward of the padded rows, which `forwards` has put together.

        An adapter that is in no slot is copied into one first, in place of the least recently used that no row of
        this forward needs.
        """
        adapters = {
            row.adapter.id: row.adapter for row in rows if row.adapter is not None and row.adapter.changes_body
        }
        with self._one_forward, self._in_slots(adapters) as slots:
            row_slots = [BASE if row.adapter is None else slots.get(row.adapter.id, BASE) for row in rows]
            order = sorted(range(len(rows)), key=row_slots.__getitem__)
            runs = [(slot, len(list(run))) for slot, run in groupby(row_slots[place] for place in order)]
            if len(runs) == 1:
                # One for all: then also layers that see something else than the batch's rows know whose it is.
                runs = [(runs[0][0], 1)]
            with torch.inference_mode(), self._bank.step_in_runs(runs):
                output = self.body(**self._padded([rows[place] for place in order]), **self._options())
        return BodyOutput(output, order, [len(row) for row in rows])

    @contextmanager
    def _in_slots(self, adapters: Mapping[str, EncoderAdapter]) -> Iterator[dict[str, int]]:
        """Inside, each of the adapters has its weights in a slot; the slots by adapter id."""
        slots: dict[str, int] = {}
        try:
            for name, adapter in adapters.items():
                claim = self._slots.claim(name)
                if claim is None:
                    raise RuntimeError(f"{len(adapters)} adapters in one forward over {self._bank.slots} slots")
                slots[name] = claim.slot
                # The weights of a claim that was given up while loading are not there, miss or not.
                if self._held.get(claim.slot) != name:
                    self._held.pop(claim.slot, None)
                    self._bank.load(claim.slot, adapter.weights)
                    self._held[claim.slot] = name
            yield slots
        finally:
            for name in slots:
                self._slots.release(name)

    def _padded(self, rows: Sequence[BodyRow]) -> dict[str, Tensor]:
        """The body's arguments, each [rows, longest], padded at the end."""
        longest = max(len(row) for row in rows)
        names = dict.fromkeys(name for row in rows for name in row.inputs)
        batch = {}
        for name in names:
            filler = self._pad_id if name == "input_ids" else 0
            padded = torch.full((len(rows), longest), filler, dtype=torch.int64)
            for place, row in enumerate(rows):
                if name in row.inputs:
                    padded[place, : len(row)] = row.inputs[name]
            batch[name] = padded.to(self.body.device)
        return batch

    def _options(self) -> dict[str, bool]:
        return {"return_dict": True} | ({"use_cache": False} if "use_cache" in self._arguments else {})

    def _is_alone(self, adapter: EncoderAdapter) -> bool:
        return not self._across_rows.isdisjoint(adapter.weights.modules)

    def _layers_across_rows(self) -> frozenset[str]:
        """The linear layers that see something else than each row's own tokens, found by running a small batch."""
        found: set[str] = set()
        prober = threading.get_ident()

        def watch(path: str) -> Any:
            def see(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                # Another thread may run the body meanwhile, with rows of its own.
                if threading.get_ident() == prober and inputs[0].shape[0] != PROBE_ROWS:
                    found.add(path)

            return see

        hooks = [layer.register_forward_pre_hook(watch(path)) for path, layer in self._bank.linears.items()]
        ids = torch.zeros(PROBE_TOKENS, dtype=torch.int64)
        row = BodyRow({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, None)
        try:
            self.forward([row] * PROBE_ROWS)
        finally:
            for hook in hooks:
                hook.remove()
        return frozenset(found)
