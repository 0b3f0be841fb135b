"""Which sequence runs when, and with which tokens: plain Python, tested without a model."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

from worker.engine.scheduling.adapter_slots import AdapterSlots
from worker.engine.scheduling.fair_shares import FairShares
from worker.engine.scheduling.slot_contents import Placement, SlotContent, SlotContents
from worker.engine.scheduling.step_plan import StepPlan, share_prompt_budget
from worker.engine.sequence import Sequence, SequenceState

MAX_OVERTAKEN = 64
"""Sequences. How many may pass one that waits for an adapter slot, and how many may wait for one before the
search ends: enough that the batch stays full while the slot's users end, few enough that the wait is bounded."""
AGEING_SECONDS = 10.0
"""A waiting sequence rises by one priority each time it has waited so long: the least urgent one is admitted after a
bounded wait whatever arrives, and one that waits for an answer is still passed by urgent ones for a while."""
WORTH_WAITING_TOKENS = 32
"""Tokens. A prompt waits for a neighbour that is reading the same beginning when it saves at least so many: about
what one step reads of a prompt beside a full batch."""


@dataclass(frozen=True)
class Parking:
    """A running sequence that must give its slot away: its keys and values are to be parked."""

    sequence: Sequence
    slot: int
    positions: int


@dataclass(frozen=True)
class Start:
    """A sequence that was given its slots, and what must be in them before it runs."""

    sequence: Sequence
    loads_adapter: bool
    copies: Placement | None
    """Where its prompt's beginning comes from; None for a sequence whose parked keys and values are restored."""


@dataclass(frozen=True)
class Admission:
    """What must be done, in this order, before the next step: first what is parked, then what starts."""

    parked: tuple[Parking, ...]
    started: tuple[Start, ...]


class Scheduler:
    """Waiting and running sequences.

    First goes the higher priority, which rises with the wait; then whose owner has had less; then the earlier
    deadline; then who came first. A sequence is admitted when a sequence slot is free, or can be had from one of
    lower priority, and its adapter has a slot or can get one. While the first in line waits for an adapter slot, at
    most `MAX_OVERTAKEN` later ones may pass it.
    """

    def __init__(
        self,
        *,
        sequence_slots: int,
        step_tokens: int,
        adapter_slots: AdapterSlots,
        chunk_tokens: int | None = None,
        reuse_key: Callable[[Sequence], Hashable | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`step_tokens` bounds the rows of one step, and `chunk_tokens` those of prompts while others decode.

        `reuse_key`: sequences with an equal key may use each other's keys and values; None shares with nobody.

        Raises ValueError when `step_tokens` is smaller than `sequence_slots`: decoding alone could then use it up,
        and a prompt would never be read.
        """
        if sequence_slots < 1:
            raise ValueError(f"sequence_slots must be 1 or more, not {sequence_slots}")
        if step_tokens < sequence_slots:
            raise ValueError(f"step_tokens ({step_tokens}) must not be below sequence_slots ({sequence_slots})")
        self.adapter_slots = adapter_slots
        self._step_tokens = step_tokens
        self._chunk_tokens = step_tokens if chunk_tokens is None else chunk_tokens
        self._reuse_key = reuse_key
        self._clock = clock
        self._contents = SlotContents(sequence_slots)
        self._shares = FairShares()
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._arrivals = 0
        self._admissions = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence is waiting or running."""
        return bool(self._waiting or self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """The sequences without a slot, in the order of arrival."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """The sequences that hold a slot, in the order of their admission."""
        return tuple(self._running)

    @property
    def free_sequence_slots(self) -> int:
        """Sequence slots that nobody holds."""
        return self._contents.free

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its slots."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        sequence.waiting_since = self._clock()
        self._shares.join(sequence.owner, {other.owner for other in (*self._waiting, *self._running)})
        self._waiting.append(sequence)

    def admit(self) -> Admission:
        """Give slots to those who can have them."""
        parked: list[Parking] = []
        started: list[Start] = []
        blocked: list[Sequence] = []
        candidates = list(self._waiting)
        now = self._clock()
        while candidates:
            sequence = min(candidates, key=partial(self._order, now=now))
            candidates.remove(sequence)
            if not blocked:
                parked += self._free_adapter_slot(sequence, now)
            if self._is_blocked(sequence, blocked):
                blocked.append(sequence)
            elif self._waits_for_a_neighbour(sequence):
                continue
            else:
                if not self._contents.free:
                    victim = self._victim(sequence)
                    if victim is None:
                        break
                    parked.append(self._park(victim, now))
                started.append(self._start(sequence, now))
                for passed in blocked:
                    passed.overtaken += 1
            # The first of the blocked has waited longest, so it has been overtaken most.
            if blocked and (blocked[0].overtaken >= MAX_OVERTAKEN or len(blocked) >= MAX_OVERTAKEN):
                break
        return Admission(tuple(parked), tuple(started))

    def plan_step(self) -> StepPlan:
        """The next step's rows: every decoding sequence, then chunks of prompts, as far as the budget goes."""
        decoding = [sequence for sequence in self._running if sequence.state is SequenceState.DECODING]
        decoding.sort(key=lambda sequence: sequence.slot or 0)
        budget = self._step_tokens - len(decoding)
        if decoding:
            budget = min(budget, self._chunk_tokens)
        reading = [sequence for sequence in self._running if sequence.state is SequenceState.PREFILLING]
        chunks = share_prompt_budget(reading, budget)
        return StepPlan(tuple(decoding), chunks)

    def advance(self, plan: StepPlan) -> None:
        """Note that the plan's rows were computed."""
        for sequence in plan.decode:
            self._shares.charge(sequence.owner, 1)
        for chunk in plan.chunks:
            chunk.sequence.prefilled = chunk.end
            if chunk.completes_prompt:
                chunk.sequence.state = SequenceState.DECODING

    def remove(self, sequence: Sequence, *, keep_content: bool = True) -> None:
        """Take a sequence out, whatever its state, and free its slots.

        `keep_content`: later prompts that begin the same may use its keys and values.
        """
        if sequence.state is SequenceState.WAITING:
            self._waiting.remove(sequence)
            sequence.parked = None
        else:
            self._release(sequence, self._content(sequence) if keep_content else None)
        sequence.state = SequenceState.FINISHED

    def _order(self, sequence: Sequence, now: float) -> tuple[float, float, float, int]:
        """Smallest goes first."""
        deadline = float("inf") if sequence.deadline is None else sequence.deadline
        return (-_risen(sequence, now), self._shares.served(sequence.owner), deadline, sequence.arrival)

    def _is_blocked(self, sequence: Sequence, blocked: list[Sequence]) -> bool:
        """Whether it must wait for an adapter slot, or would take the one that an earlier sequence waits for."""
        if sequence.slot_adapter_id is None:
            return False
        if blocked and sequence.slot_adapter_id not in self.adapter_slots.resident:
            return True
        return not self.adapter_slots.can_claim(sequence.slot_adapter_id)

    def _waits_for_a_neighbour(self, sequence: Sequence) -> bool:
        """Whether a running sequence, no less urgent, is reading much of its prompt now: it can be copied soon."""
        key = self._reuse_key(sequence)
        if key is None or sequence.parked is not None:
            return False
        reading = {
            other.slot: SlotContent(key, other.prompt_tokens)
            for other in self._running
            if other.state is SequenceState.PREFILLING
            and other.slot is not None
            and other.priority >= sequence.priority
            and self._reuse_key(other) == key
        }
        if not reading:
            return False
        _, soon = SlotContents(0).match(key, sequence.prompt_tokens, reading)
        _, now = self._contents.match(key, sequence.prompt_tokens, self._running_contents())
        return soon - now >= WORTH_WAITING_TOKENS

    def _victim(self, sequence: Sequence) -> Sequence | None:
        """The running sequence of the lowest rank, and of those the last admitted, if `sequence` is more urgent.

        Nobody started in the same admission is one: those were not less urgent, and so is their rank.
        """
        victim = min(self._running, key=lambda running: (running.rank, -running.admitted))
        return victim if victim.rank < sequence.priority else None

    def _free_adapter_slot(self, sequence: Sequence, now: float) -> list[Parking]:
        """Park the users of one adapter, if `sequence` needs its slot and is more urgent than all of them."""
        if sequence.slot_adapter_id is None or self.adapter_slots.can_claim(sequence.slot_adapter_id):
            return []
        users: dict[str, list[Sequence]] = {}
        for running in self._running:
            if running.slot_adapter_id is not None and running.slot_adapter_id not in self.adapter_slots.pinned:
                users.setdefault(running.slot_adapter_id, []).append(running)
        if not users:
            return []
        least_urgent = min(users.values(), key=lambda group: max(running.rank for running in group))
        if max(running.rank for running in least_urgent) >= sequence.priority:
            return []
        return [self._park(running, now) for running in least_urgent]

    def _park(self, sequence: Sequence, now: float) -> Parking:
        assert sequence.slot is not None
        parking = Parking(sequence, sequence.slot, sequence.computed_positions)
        self._release(sequence, self._content(sequence))
        sequence.state = SequenceState.WAITING
        sequence.waiting_since = now
        self._waiting.append(sequence)
        return parking

    def _start(self, sequence: Sequence, now: float) -> Start:
        """Give it its slots."""
        self._waiting.remove(sequence)
        sequence.rank = _risen(sequence, now)
        is_miss = False
        if sequence.slot_adapter_id is not None:
            claim = self.adapter_slots.claim(sequence.slot_adapter_id)
            assert claim is not None, "_is_blocked lets only those pass whose adapter can have a slot"
            sequence.adapter_slot, is_miss = claim.slot, claim.is_miss
        placement = None
        if sequence.parked is None and not sequence.token_ids and not sequence.prefilled:
            placement = self._contents.place(
                self._reuse_key(sequence), sequence.prompt_tokens, self._running_contents()
            )
            sequence.slot, sequence.reused_tokens = placement.slot, placement.reused
            if placement.reused:
                sequence.prefilled = sequence.virtual_tokens + placement.reused
            self._shares.charge(sequence.owner, len(sequence.prompt_tokens) - placement.reused)
        else:
            sequence.slot = self._contents.take()
        sequence.state = SequenceState.DECODING if sequence.token_ids else SequenceState.PREFILLING
        self._admissions += 1
        sequence.admitted = self._admissions
        self._running.append(sequence)
        return Start(sequence, is_miss, placement)

    def _release(self, sequence: Sequence, content: SlotContent | None) -> None:
        self._running.remove(sequence)
        assert sequence.slot is not None
        self._contents.release(sequence.slot, content)
        if sequence.adapter_slot is not None and sequence.slot_adapter_id is not None:
            self.adapter_slots.release(sequence.slot_adapter_id)
        sequence.slot = sequence.adapter_slot = None

    def _running_contents(self) -> dict[int, SlotContent]:
        contents = {sequence.slot: self._content(sequence) for sequence in self._running}
        return {slot: content for slot, content in contents.items() if slot is not None and content is not None}

    def _content(self, sequence: Sequence) -> SlotContent | None:
        key = self._reuse_key(sequence)
        return None if key is None else SlotContent(key, sequence.computed_tokens)


def _risen(sequence: Sequence, now: float) -> int:
    """A waiting sequence's priority with what it has risen by waiting."""
    return sequence.priority + int((now - sequence.waiting_since) / AGEING_SECONDS)
