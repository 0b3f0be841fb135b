"""Which sequence runs when, and with which tokens: plain Python, tested without a model."""

import heapq
from collections import deque
from dataclasses import dataclass

from worker.engine.adapter_slots import AdapterSlots
from worker.engine.sequence import Sequence, SequenceState

MAX_OVERTAKEN = 64
"""Sequences. How many may pass one that waits for an adapter slot, and how many may wait for one before the
search ends: enough that the batch stays full while the slot's users end, few enough that the wait is bounded."""


@dataclass(frozen=True)
class PrefillChunk:
    """A part of a prompt, `prompt_tokens[start:end]`, that one step reads."""

    sequence: Sequence
    start: int
    end: int

    @property
    def completes_prompt(self) -> bool:
        """Whether the step's logits give the first generated token."""
        return self.end == len(self.sequence.prompt_tokens)


@dataclass(frozen=True)
class StepPlan:
    """What one step computes: one token of each decoding sequence, and chunks of prompts."""

    decode: tuple[Sequence, ...]
    """In the order of their slots."""
    chunks: tuple[PrefillChunk, ...]
    """In the order of their arrival."""

    @property
    def tokens(self) -> int:
        """Rows of the flattened forward."""
        return len(self.decode) + sum(chunk.end - chunk.start for chunk in self.chunks)

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Every sequence that has a row in this step."""
        return (*self.decode, *(chunk.sequence for chunk in self.chunks))

    @property
    def emitting(self) -> tuple[Sequence, ...]:
        """The sequences that get a token from this step, in the order of their rows."""
        return (*self.decode, *(chunk.sequence for chunk in self.chunks if chunk.completes_prompt))


class Scheduler:
    """Waiting and running sequences, first come, first served.

    A sequence is admitted when a sequence slot is free and its adapter has a slot or can get one. While the first
    in line waits for an adapter slot, at most `MAX_OVERTAKEN` later ones may pass it.
    """

    def __init__(self, *, sequence_slots: int, step_tokens: int, adapter_slots: AdapterSlots) -> None:
        """`step_tokens` bounds the rows of one step.

        Raises ValueError when it is smaller than `sequence_slots`: decoding alone could then use it up, and a
        prompt would never be read.
        """
        if sequence_slots < 1:
            raise ValueError(f"sequence_slots must be 1 or more, not {sequence_slots}")
        if step_tokens < sequence_slots:
            raise ValueError(f"step_tokens ({step_tokens}) must not be below sequence_slots ({sequence_slots})")
        self.adapter_slots = adapter_slots
        self._step_tokens = step_tokens
        self._free_slots = list(range(sequence_slots))  # a heap: low slots first keep the decode span dense
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether any sequence is waiting or running."""
        return bool(self._waiting or self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """The sequences without a slot, first in line first."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """The sequences that hold a slot, in the order of their admission."""
        return tuple(self._running)

    @property
    def free_sequence_slots(self) -> int:
        """Sequence slots that nobody holds."""
        return len(self._free_slots)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the line."""
        self._waiting.append(sequence)

    def admit(self) -> tuple[Sequence, ...]:
        """Give slots to those who can have them; returns the admitted whose adapter must be loaded first."""
        misses: list[Sequence] = []
        blocked: list[Sequence] = []
        while self._free_slots and self._waiting:
            sequence = self._waiting.popleft()
            if self._is_blocked(sequence, blocked):
                blocked.append(sequence)
            else:
                if self._start(sequence):
                    misses.append(sequence)
                for passed in blocked:
                    passed.overtaken += 1
            # The first of the blocked has waited longest, so it has been overtaken most.
            if blocked and (blocked[0].overtaken >= MAX_OVERTAKEN or len(blocked) >= MAX_OVERTAKEN):
                break
        self._waiting.extendleft(reversed(blocked))
        return tuple(misses)

    def plan_step(self) -> StepPlan:
        """The next step's rows: every decoding sequence, then prompts in order, as far as the budget goes."""
        decoding = [sequence for sequence in self._running if sequence.state is SequenceState.DECODING]
        decoding.sort(key=lambda sequence: sequence.slot or 0)
        budget = self._step_tokens - len(decoding)
        chunks: list[PrefillChunk] = []
        for sequence in self._running:
            if budget == 0:
                break
            if sequence.state is SequenceState.PREFILLING:
                start = sequence.prefilled
                end = min(len(sequence.prompt_tokens), start + budget)
                chunks.append(PrefillChunk(sequence, start, end))
                budget -= end - start
        return StepPlan(tuple(decoding), tuple(chunks))

    def advance(self, plan: StepPlan) -> None:
        """Note that the plan's rows were computed."""
        for chunk in plan.chunks:
            chunk.sequence.prefilled = chunk.end
            if chunk.completes_prompt:
                chunk.sequence.state = SequenceState.DECODING

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, whatever its state, and free its slots."""
        if sequence.state is SequenceState.WAITING:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            assert sequence.slot is not None
            heapq.heappush(self._free_slots, sequence.slot)
            if sequence.adapter_slot is not None and sequence.adapter_id is not None:
                self.adapter_slots.release(sequence.adapter_id)
        sequence.slot = sequence.adapter_slot = None
        sequence.state = SequenceState.FINISHED

    def _is_blocked(self, sequence: Sequence, blocked: list[Sequence]) -> bool:
        """Whether it must wait for an adapter slot, or would take the one that an earlier sequence waits for."""
        if sequence.adapter_id is None:
            return False
        if blocked and sequence.adapter_id not in self.adapter_slots.resident:
            return True
        return not self.adapter_slots.can_claim(sequence.adapter_id)

    def _start(self, sequence: Sequence) -> bool:
        """Give it its slots; returns whether its adapter must be loaded."""
        is_miss = False
        if sequence.adapter_id is not None:
            claim = self.adapter_slots.claim(sequence.adapter_id)
            assert claim is not None, "_is_blocked lets only those pass whose adapter can have a slot"
            sequence.adapter_slot, is_miss = claim.slot, claim.is_miss
        sequence.slot = heapq.heappop(self._free_slots)
        sequence.state = SequenceState.PREFILLING
        self._running.append(sequence)
        return is_miss
