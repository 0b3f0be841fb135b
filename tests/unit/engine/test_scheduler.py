"""The scheduler's decisions, without a model: a step is planned, noted as computed, and tokens are counted."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.specs import GenerationParameters
from worker.engine.adapters.prefix import VirtualTokens
from worker.engine.adapters.weights import AdapterWeights
from worker.engine.scheduling.adapter_slots import AdapterSlots
from worker.engine.scheduling.scheduler import MAX_OVERTAKEN, Admission, Scheduler
from worker.engine.scheduling.step_plan import PrefillChunk, StepPlan
from worker.engine.sequence import Sequence, SequenceState


def sequence(prompt: int = 4, new: int = 2, adapter: str | None = None) -> Sequence:
    """A sequence of `prompt` tokens that generates `new`."""
    weights = None if adapter is None else AdapterWeights(adapter, {})
    return Sequence(range(prompt), GenerationParameters(max_new_tokens=new), adapter=weights)


def scheduler(sequence_slots: int = 2, step_tokens: int = 8, adapter_slots: int = 1) -> Scheduler:
    return Scheduler(
        sequence_slots=sequence_slots, step_tokens=step_tokens, adapter_slots=AdapterSlots(adapter_slots)
    )


def loading(admission: Admission) -> list[Sequence]:
    """Those whose adapter must be copied into its slot."""
    return [start.sequence for start in admission.started if start.loads_adapter]


def compute(scheduler: Scheduler, plan: StepPlan) -> list[Sequence]:
    """Play the engine: one token for each emitting sequence; returns and removes those that are finished."""
    scheduler.advance(plan)
    finished = []
    for emitting in plan.emitting:
        emitting.token_ids.append(0)
        if len(emitting.token_ids) == emitting.max_new_tokens:
            scheduler.remove(emitting)
            finished.append(emitting)
    return finished


def test_decoding_goes_before_reading_prompts() -> None:
    plans = scheduler(sequence_slots=2, step_tokens=8)
    first, second = sequence(prompt=3, new=5), sequence(prompt=20)
    plans.add(first)
    plans.admit()
    compute(plans, plans.plan_step())
    plans.add(second)
    plans.admit()

    plan = plans.plan_step()

    assert plan.decode == (first,)
    assert plan.chunks == (PrefillChunk(second, 0, 7),)


def test_a_long_prompt_is_read_in_chunks_that_follow_each_other() -> None:
    plans = scheduler(step_tokens=8)
    long = sequence(prompt=20)
    plans.add(long)
    plans.admit()
    chunks = []
    while long.state is not SequenceState.DECODING:
        plan = plans.plan_step()
        chunks += [(chunk.start, chunk.end, chunk.completes_prompt) for chunk in plan.chunks]
        compute(plans, plan)

    assert chunks == [(0, 8, False), (8, 16, False), (16, 20, True)]


def test_the_budget_left_by_one_prompt_goes_to_the_next() -> None:
    plans = scheduler(sequence_slots=3, step_tokens=8)
    prompts = [sequence(prompt=length) for length in (3, 4, 5)]
    for prompt in prompts:
        plans.add(prompt)
    plans.admit()

    assert [(chunk.start, chunk.end) for chunk in plans.plan_step().chunks] == [(0, 3), (0, 4), (0, 1)]


def test_more_sequences_than_slots_wait_in_line() -> None:
    plans = scheduler(sequence_slots=2)
    line = [sequence(new=1) for _ in range(5)]
    for waiting in line:
        plans.add(waiting)
    finished = []
    while plans.has_work:
        plans.admit()
        assert len(plans.running) <= 2
        finished += compute(plans, plans.plan_step())

    assert finished == line


def test_a_sequence_waits_while_other_adapters_hold_every_slot() -> None:
    plans = scheduler(sequence_slots=3, adapter_slots=1)
    holder, blocked, base = sequence(adapter="a"), sequence(adapter="b"), sequence()
    for waiting in (holder, blocked, base):
        plans.add(waiting)

    assert loading(plans.admit()) == [holder]
    assert plans.running == (holder, base)
    assert plans.waiting == (blocked,)

    plans.remove(holder)

    assert loading(plans.admit()) == [blocked]


def test_an_adapter_that_only_begins_the_prompt_takes_no_slot() -> None:
    """A trained prefix is keys and values of its sequence: no layer of the bank holds anything of it."""
    plans = scheduler(adapter_slots=1)
    low_rank, prompt_tuned = sequence(adapter="low rank"), sequence()
    prompt_tuned.adapter = AdapterWeights("prompt", {}, VirtualTokens(torch.zeros(2, 4)))
    plans.add(low_rank)
    plans.add(prompt_tuned)

    assert loading(plans.admit()) == [low_rank]
    assert plans.running == (low_rank, prompt_tuned)
    assert prompt_tuned.adapter_slot is None


def test_an_adapter_that_is_in_its_slot_is_not_loaded_again() -> None:
    plans = scheduler(sequence_slots=3, adapter_slots=1)
    first, second = sequence(adapter="a"), sequence(adapter="a")
    plans.add(first)
    plans.add(second)

    assert loading(plans.admit()) == [first]
    assert first.adapter_slot == second.adapter_slot == 0


def test_a_waiting_sequence_is_overtaken_only_so_often() -> None:
    """Cause of starvation: users of the one adapter that never end, each pinning the slot for the next."""
    plans = scheduler(sequence_slots=2, step_tokens=8, adapter_slots=1)
    plans.add(sequence(adapter="a", new=1))
    plans.admit()
    blocked = sequence(adapter="b")
    plans.add(blocked)
    steps = 0
    while blocked.state is SequenceState.WAITING:
        plans.add(sequence(adapter="a", new=2))
        plans.admit()
        compute(plans, plans.plan_step())
        steps += 1
        assert steps < 3 * MAX_OVERTAKEN

    assert blocked.overtaken == MAX_OVERTAKEN


def test_nobody_is_parked_for_the_slot_of_a_pinned_adapter() -> None:
    """It would not become free."""
    plans = scheduler(sequence_slots=3, adapter_slots=2)
    plans.adapter_slots.pin(frozenset({"pinned"}))
    of_pinned, of_other, urgent = (sequence(adapter=name) for name in ("pinned", "other", "third"))
    plans.add(of_other)
    plans.admit()
    plans.add(of_pinned)
    plans.admit()
    urgent.priority = 1
    plans.add(urgent)

    assert [parking.sequence for parking in plans.admit().parked] == [of_other]
    assert plans.running == (of_pinned, urgent)


def test_a_removed_sequence_frees_its_slots() -> None:
    plans = scheduler(sequence_slots=1, adapter_slots=1)
    running, waiting = sequence(adapter="a"), sequence(adapter="b")
    plans.add(running)
    plans.add(waiting)
    plans.admit()
    plans.remove(waiting)
    plans.remove(running)

    assert not plans.has_work
    assert plans.free_sequence_slots == 1
    assert plans.adapter_slots.used == 0
    assert running.state is waiting.state is SequenceState.FINISHED


@pytest.mark.parametrize(("slots", "tokens"), [(0, 8), (9, 8)])
def test_sizes_that_could_stall_are_refused(slots: int, tokens: int) -> None:
    with pytest.raises(ValueError, match="sequence_slots"):
        scheduler(sequence_slots=slots, step_tokens=tokens)


@dataclass
class Arrival:
    """A sequence, the step at which it arrives, and the step at which it is cancelled, if it is."""

    sequence: Sequence
    at: int
    cancel_at: int | None


@st.composite
def arrivals(draw: st.DrawFn) -> Arrival:
    made = sequence(
        prompt=draw(st.integers(1, 30)),
        new=draw(st.integers(1, 8)),
        adapter=draw(st.sampled_from([None, "a", "b", "c", "d"])),
    )
    return Arrival(made, at=draw(st.integers(0, 20)), cancel_at=draw(st.none() | st.integers(0, 40)))


@dataclass
class Machine:
    """What a run of the scheduler must keep true at every step."""

    scheduler: Scheduler
    slots: int
    budget: int
    adapters: int
    finished: list[Sequence] = field(default_factory=list)

    def step(self) -> None:
        loaded = loading(self.scheduler.admit())
        plan = self.scheduler.plan_step()
        running = self.scheduler.running
        assert plan.tokens <= self.budget
        assert (plan.tokens > 0) == self.scheduler.has_work, "work, but nobody advances"
        assert len({member.slot for member in running}) == len(running) <= self.slots
        assert all(0 <= (member.slot or 0) < self.slots for member in running)
        assert len(set(plan.sequences)) == len(plan.sequences)
        owner: dict[int, str] = {}
        for member in running:
            assert (member.adapter_slot is None) == (member.adapter_id is None)
            if member.adapter_slot is not None and member.adapter_id is not None:
                assert owner.setdefault(member.adapter_slot, member.adapter_id) == member.adapter_id
                assert member.adapter_slot < self.adapters
        assert set(loaded) <= set(running)
        self.finished += compute(self.scheduler, plan)


@settings(deadline=None)
@given(
    st.lists(arrivals(), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(0, 20),
    st.integers(1, 3),
)
def test_whatever_arrives_everything_ends_and_nothing_is_doubled(
    arriving: list[Arrival], slots: int, spare: int, adapters: int
) -> None:
    budget = slots + spare
    machine = Machine(scheduler(slots, budget, adapters), slots, budget, adapters)
    cancelled: list[Sequence] = []
    work = sum(len(one.sequence.prompt_tokens) + one.sequence.max_new_tokens for one in arriving)
    # Each step computes at least one token of work, so the work (and the last arrival) bounds the steps.
    for now in range(work + 21):
        for one in arriving:
            if one.at == now:
                machine.scheduler.add(one.sequence)
            elif one.cancel_at == now and one.at < now and one.sequence.state is not SequenceState.FINISHED:
                machine.scheduler.remove(one.sequence)
                cancelled.append(one.sequence)
        machine.step()

    assert not machine.scheduler.has_work
    assert len(machine.finished) + len(cancelled) == len(arriving)
    assert all(len(done.token_ids) == done.max_new_tokens for done in machine.finished)
    assert machine.scheduler.free_sequence_slots == slots
    assert machine.scheduler.adapter_slots.used == 0


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=20), st.integers(1, 4))
def test_without_adapters_equals_are_admitted_in_the_order_of_arrival(prompts: list[int], slots: int) -> None:
    plans = scheduler(slots, slots + 4)
    line = [sequence(prompt=length, new=3) for length in prompts]
    for waiting in line:
        plans.add(waiting)
    started: list[Sequence] = []
    while plans.has_work:
        started += [start.sequence for start in plans.admit().started]
        compute(plans, plans.plan_step())

    assert started == line
