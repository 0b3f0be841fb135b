"""Steps that only decode, as CUDA graphs: one call starts the whole forward, where Python would start each kernel.

A recording reads its inputs from memory that stays where it is (`StaticInputs`), and is made for a bucket: so many
rows, so long a context. Fewer rows are filled up with repetitions of the first one, which write the same key and
value to the same place again, so that no slot is set aside for them.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from worker.engine.adapters.bank import AdapterBank
from worker.engine.adapters.grouped_update import GroupedRows, sorted_rows
from worker.engine.kv.attention import over_slots
from worker.engine.kv.layout import SlotStep
from worker.engine.kv.token_major import TokenMajorSlots
from worker.engine.kv.varlen_attention import VarlenRows
from worker.engine.recording import Recorded, Work

log = logging.getLogger(__name__)

RECORD_AT = 4
"""A bucket is recorded in its fourth step: recording costs about three steps, and some buckets never come again."""

LEAST_CONTEXT = 1024
"""Tokens of the smallest context bucket. The bucket only tells the kernel into how many parts to cut a slot; how far
it reads is in the inputs."""

MOST_RECORDINGS = 32
"""Recordings kept: buckets up to 128 rows by up to 4 contexts. Of what a recording holds only the logits are its own
(rows * vocabulary); the rest of its memory it shares with the others."""

TOLERANCE = 0.05
"""Largest difference that a recording's trial accepts, in shares of the largest logit: the same kernels ran in the
same order, but one that sums in no fixed order may have been among them."""


@dataclass(frozen=True)
class DecodeStep:
    """One token of each of n sequences, in plain numbers."""

    tokens: Sequence[int]
    positions: Sequence[int]
    slots: Sequence[int]
    adapter_slots: Sequence[int]
    """-1 is the base."""


@dataclass(frozen=True)
class Bucket:
    """Steps that one recording computes."""

    rows: int
    context: int
    tables: int | None
    """How many layers have adapters' pairs; None for steps of the base alone. With one layer more a recording is out
    of date, for it leaves that layer's updates out."""


def bucket_of(step: DecodeStep, *, slots: int, slot_tokens: int, tables: int) -> Bucket:
    """The smallest bucket that holds the step; powers of two, but no more than there is."""
    adapted = any(slot >= 0 for slot in step.adapter_slots)
    return Bucket(
        rows=min(_power_of_two(len(step.tokens)), slots),
        context=min(max(_power_of_two(max(step.positions) + 1), LEAST_CONTEXT), slot_tokens),
        tables=tables if adapted else None,
    )


def padded(step: DecodeStep, rows: int) -> DecodeStep:
    """The step with repetitions of its first row behind the others."""
    columns = (step.tokens, step.positions, step.slots, step.adapter_slots)
    return DecodeStep(*([*column, *[column[0]] * (rows - len(column))] for column in columns))


class StaticInputs:
    """A bucket's inputs on the device, filled anew for each step by one copy that nobody waits for."""

    def __init__(self, rows: int, adapter_slots: int, device: torch.device) -> None:
        size = 6 * rows + adapter_slots
        # The host's part is written again in the next step: by then the tokens of this one have been waited for.
        self._host = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._values = torch.zeros(size, dtype=torch.int64, device=device)
        self._adapter_slots = adapter_slots
        columns = self._values[: 6 * rows].view(6, rows)
        self.tokens, self.positions, self.slots, self.adapter_rows, self._order, self._back = columns.unbind()
        self._ends = self._values[6 * rows :]

    def fill(self, step: DecodeStep) -> None:
        """`step` has exactly the bucket's rows."""
        order, back, ends = sorted_rows(step.adapter_slots, self._adapter_slots)
        columns = [*step.tokens, *step.positions, *step.slots, *step.adapter_slots, *order, *back, *ends]
        self._host.copy_(torch.tensor(columns))
        self._values.copy_(self._host, non_blocking=True)

    def groups(self) -> GroupedRows:
        """The rows by their adapters, computed from what the inputs hold when this runs."""
        return GroupedRows(self._order, self._back, self._ends.int(), (self.adapter_rows >= 0)[:, None])

    def layout(self, kv: TokenMajorSlots, context: int) -> VarlenRows:
        """Where the rows stand, computed from what the inputs hold when this runs."""
        every = torch.arange(len(self.slots) + 1, dtype=torch.int32, device=self.slots.device)
        return VarlenRows(
            places=self.slots * kv.slot_tokens + self.positions,
            query_ends=every,
            key_ends=every * kv.slot_tokens,
            table=self.slots.int()[:, None],
            used=(self.positions + 1).int(),
            longest_query=1,
            longest_key=context,
        )


class DecodeGraphs:
    """The recordings of one model's decode steps."""

    def __init__(
        self,
        model: PreTrainedModel,
        kv: TokenMajorSlots,
        bank: AdapterBank,
        *,
        record: Callable[[Work], Recorded],
    ) -> None:
        """`record` makes a recording of work; all of them may share their memory."""
        self._model = model
        self._kv = kv
        self._bank = bank
        self._record = record
        self._met: Counter[Bucket] = Counter()
        self._recordings: dict[Bucket, tuple[StaticInputs, Recorded]] = {}
        """Those used last stand last."""
        self.fault: str | None = None
        """Why nothing is recorded any more."""

    def run(self, step: DecodeStep) -> torch.Tensor | None:
        """The step's logits, [rows, vocabulary], valid until the next run; None for a step to be computed eagerly.

        Eager are the first steps of a bucket, and those with an adapter that scales features (IA3, DoRA).
        """
        if self.fault is not None or not self._bank.scaled.isdisjoint(step.adapter_slots):
            return None
        bucket = bucket_of(
            step, slots=self._kv.slots, slot_tokens=self._kv.slot_tokens, tables=self._bank.paired_layers
        )
        filled = padded(step, bucket.rows)
        if bucket in self._recordings:
            inputs, recorded = self._recordings[bucket] = self._recordings.pop(bucket)
            inputs.fill(filled)
            return recorded()[: len(step.tokens)]
        self._met[bucket] += 1
        if self._met[bucket] < RECORD_AT:
            return None
        logits = self._add(bucket, filled)
        return None if logits is None else logits[: len(step.tokens)]

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """What is recorded; the one used last stands last."""
        return tuple(self._recordings)

    def _add(self, bucket: Bucket, step: DecodeStep) -> torch.Tensor | None:
        """Record a bucket's steps and compute this one by it; None if that fails, and then for good."""
        self._forget_some()
        inputs = StaticInputs(bucket.rows, self._bank.slots, self._kv.device)
        inputs.fill(step)
        try:
            recorded = self._record(lambda: self._logits(inputs, bucket))
            logits = recorded()
            tolerance = TOLERANCE * float(recorded.first.abs().max().nan_to_num())
            # What is not finite is the weights' fault, and found by whoever chooses the tokens.
            if not torch.allclose(logits, recorded.first, rtol=0, atol=tolerance, equal_nan=True):
                raise RuntimeError("the recorded step gave other logits than the same step before it")
        except Exception as error:  # whatever the model does that cannot be recorded, the eager step does it too
            self._recordings.clear()
            self.fault = f"{type(self._model).__name__} decodes without CUDA graphs: {error}"
            log.warning("%s", self.fault)
            return None
        recorded.first = torch.empty(0)  # it has served, and would hold the device's memory
        self._recordings[bucket] = (inputs, recorded)
        return logits

    def _forget_some(self) -> None:
        """Drop recordings that are out of date, and the one unused for longest where there are too many."""
        current = (None, self._bank.paired_layers)
        for other in [other for other in self._recordings if other.tables not in current]:
            del self._recordings[other]
        if len(self._recordings) >= MOST_RECORDINGS:
            del self._recordings[next(iter(self._recordings))]

    def _logits(self, inputs: StaticInputs, bucket: Bucket) -> torch.Tensor:
        """[rows, vocabulary]: the forward over the inputs' memory, as it is recorded."""
        rows = nullcontext() if bucket.tables is None else self._bank.any_slots(inputs.adapter_rows, inputs.groups())
        layout = inputs.layout(self._kv, bucket.context)
        with rows, over_slots(SlotStep(self._kv, None, (), layout)):
            output = self._model(input_ids=inputs.tokens[None], position_ids=inputs.positions[None], use_cache=False)
        logits: torch.Tensor = output.logits[0]
        return logits


def _power_of_two(count: int) -> int:
    """The smallest that is no less than `count`."""
    return 1 << (count - 1).bit_length()
