"""Ten thousand random events against a model of the memory: no sequence ever runs on keys and values not its own."""

import random

import pytest

from tandem.specs import GenerationParameters
from worker.engine.adapters.weights import AdapterWeights
from worker.engine.scheduling.adapter_slots import AdapterSlots
from worker.engine.scheduling.scheduler import AGEING_SECONDS, Scheduler
from worker.engine.sequence import Sequence, SequenceState

SLOTS, ADAPTER_SLOTS, STEP_TOKENS = 5, 2, 12
EVENTS = 10_000
MAX_ALIVE = 14

Cell = tuple[str | None, int]
"""What one position of a slot holds the keys and values of: a token under an adapter."""


class Memory:
    """The scheduler's decisions, carried out on lists instead of tensors."""

    def __init__(self) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(
            sequence_slots=SLOTS,
            step_tokens=STEP_TOKENS,
            chunk_tokens=7,
            adapter_slots=AdapterSlots(ADAPTER_SLOTS),
            reuse_key=lambda sequence: (sequence.owner, sequence.adapter_id),
            clock=lambda: self.now,
        )
        self.slots: list[list[Cell]] = [[] for _ in range(SLOTS)]
        self.adapters: list[str | None] = [None] * ADAPTER_SLOTS
        self.parked: dict[Sequence, list[Cell]] = {}
        self.reused = self.restored = self.loads = 0

    def step(self) -> None:
        self.now += 1.0
        self._admit()
        plan = self.scheduler.plan_step()
        assert plan.tokens <= STEP_TOKENS
        assert (plan.tokens > 0) == self.scheduler.has_work, "there is work, and nobody advances"
        for sequence in plan.decode:
            self._write(sequence, sequence.next_position, [sequence.last_token])
        for chunk in plan.chunks:
            self._write(chunk.sequence, chunk.start, list(chunk.sequence.prompt_tokens[chunk.start : chunk.end]))
        self.scheduler.advance(plan)
        for sequence in plan.emitting:
            sequence.token_ids.append(100 + len(sequence.token_ids))
            if len(sequence.token_ids) == sequence.max_new_tokens:
                self.scheduler.remove(sequence)

    def _admit(self) -> None:
        admission = self.scheduler.admit()
        for parking in admission.parked:
            if parking.positions:
                self.parked[parking.sequence] = self.slots[parking.slot][: parking.positions]
                parking.sequence.parked = object()  # type: ignore[assignment]  # stands for keys and values
        for start in admission.started:
            sequence = start.sequence
            assert sequence.slot is not None
            if start.loads_adapter:
                assert sequence.adapter_slot is not None
                self.adapters[sequence.adapter_slot] = sequence.adapter_id
                self.loads += 1
            if start.copies is None:
                self.slots[sequence.slot] = self.parked.pop(sequence)
                sequence.parked = None
                self.restored += 1
            elif start.copies.copy_from is not None:
                self.slots[sequence.slot] = self.slots[start.copies.copy_from][: start.copies.reused]
            self.reused += sequence.reused_tokens

    def _write(self, sequence: Sequence, position: int, tokens: list[int]) -> None:
        """Compute rows: what stands before them must be the sequence's own."""
        assert sequence.slot is not None
        held = self.slots[sequence.slot]
        own = [(sequence.adapter_id, token) for token in (*sequence.prompt_tokens, *sequence.token_ids)]
        assert held[:position] == own[:position]
        if sequence.adapter_slot is not None:
            assert self.adapters[sequence.adapter_slot] == sequence.adapter_id
        held[position:] = [(sequence.adapter_id, token) for token in tokens]


def random_sequence(chance: random.Random) -> Sequence:
    """Prompts begin alike in few ways, so that much can be shared; adapters are more than there are slots."""
    beginning = [chance.randrange(3)] * chance.choice([0, 9, 20])
    prompt = [*beginning, *(chance.randrange(9) for _ in range(chance.randint(1, 12)))]
    name = chance.choice([None, "a", "b", "c", "d"])
    return Sequence(
        prompt,
        GenerationParameters(max_new_tokens=chance.randint(1, 8)),
        adapter=None if name is None else AdapterWeights(name, {}),
        priority=chance.choice([-1, 0, 0, 0, 1, 2]),
        owner=chance.choice(["one", "two"]),
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_arrives_leaves_and_gives_way_nobody_runs_on_what_is_not_its_own(seed: int) -> None:
    chance = random.Random(seed)
    memory = Memory()
    alive: list[Sequence] = []
    ended = removed = 0
    for _ in range(EVENTS):
        event = chance.random()
        if event < 0.25 and len(alive) < MAX_ALIVE:
            alive.append(random_sequence(chance))
            memory.scheduler.add(alive[-1])
        elif event < 0.28 and alive:
            leaving = alive.pop(chance.randrange(len(alive)))
            memory.scheduler.remove(leaving, keep_content=chance.random() < 0.5)
            memory.parked.pop(leaving, None)
            removed += 1
        elif event < 0.285:
            memory.now += AGEING_SECONDS
        else:
            memory.step()
        ended += sum(one.state is SequenceState.FINISHED for one in alive)
        alive = [one for one in alive if one.state is not SequenceState.FINISHED]
    while memory.scheduler.has_work:
        memory.step()

    assert min(ended, memory.reused, memory.restored, memory.loads, removed) > 100
    assert memory.scheduler.free_sequence_slots == SLOTS
    assert memory.scheduler.adapter_slots.used == 0
    assert not memory.parked
