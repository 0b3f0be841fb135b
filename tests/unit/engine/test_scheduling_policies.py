"""Who goes first, who must give way, and how a step is divided: the scheduler's policies, without a model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.specs import GenerationParameters
from worker.engine.scheduling.adapter_slots import AdapterSlots
from worker.engine.scheduling.fair_shares import FairShares
from worker.engine.scheduling.scheduler import AGEING_SECONDS, WORTH_WAITING_TOKENS, Scheduler
from worker.engine.scheduling.step_plan import share_prompt_budget
from worker.engine.sequence import Sequence, SequenceState


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def sequence(
    prompt: int = 4,
    new: int = 2,
    *,
    priority: int = 0,
    owner: str = "",
    deadline: float | None = None,
    first: int = 0,
) -> Sequence:
    """A sequence of the `prompt` tokens that begin with `first`."""
    return Sequence(
        range(first, first + prompt),
        GenerationParameters(max_new_tokens=new),
        priority=priority,
        owner=owner,
        deadline=deadline,
    )


def scheduler(slots: int, *, step_tokens: int = 64, clock: Clock | None = None, **options) -> Scheduler:
    return Scheduler(
        sequence_slots=slots,
        step_tokens=step_tokens,
        adapter_slots=AdapterSlots(1),
        clock=clock or Clock(),
        **options,
    )


def step(plans: Scheduler) -> None:
    """Play the engine: park and restore what must be, compute a step, count its tokens, remove who is finished."""
    admission = plans.admit()
    for parking in admission.parked:
        parking.sequence.parked = object() if parking.positions else None  # type: ignore[assignment]  # stands for KV
    for start in admission.started:
        start.sequence.parked = None
    plan = plans.plan_step()
    plans.advance(plan)
    for emitting in plan.emitting:
        emitting.token_ids.append(0)
        if len(emitting.token_ids) == emitting.max_new_tokens:
            plans.remove(emitting)


def order_of_admission(plans: Scheduler, arriving: list[Sequence]) -> list[Sequence]:
    for waiting in arriving:
        plans.add(waiting)
    admitted: list[Sequence] = []
    while plans.has_work:
        before = set(plans.running)
        step(plans)
        admitted += [one for one in arriving if one.admitted and one not in admitted and one not in before]
    return sorted(admitted, key=lambda one: one.admitted)


def test_the_more_urgent_is_admitted_first() -> None:
    low, normal, urgent = (sequence(priority=priority) for priority in (-1, 0, 2))

    assert order_of_admission(scheduler(1), [low, normal, urgent]) == [urgent, normal, low]


def test_among_equals_of_one_owner_the_earlier_deadline_goes_first() -> None:
    late, none, soon = sequence(deadline=9.0), sequence(), sequence(deadline=5.0)

    assert order_of_admission(scheduler(1), [none, late, soon]) == [soon, late, none]


def test_owners_take_turns_however_many_sequences_one_has_sent() -> None:
    many = [sequence(owner="many") for _ in range(6)]
    few = [sequence(owner="few") for _ in range(2)]

    order = order_of_admission(scheduler(1), [*many, *few])

    assert [one.owner for one in order] == ["many", "few", "many", "few", "many", "many", "many", "many"]


def test_a_pause_earns_no_credit_and_a_newcomer_does_not_lock_out_the_others() -> None:
    shares = FairShares()
    shares.join("early", ())
    shares.charge("early", 1000)
    shares.join("late", ("early",))
    assert shares.served("late") == 1000

    shares.charge("late", 10)
    shares.join("early", ("late",))
    assert shares.served("early") == 1010


def test_who_finds_nobody_starts_where_the_last_one_was() -> None:
    """Otherwise an owner that had the engine alone for a day would be starved by the next one for as long."""
    shares = FairShares()
    shares.join("day", ())
    shares.charge("day", 1_000_000)
    shares.join("next", ())

    assert shares.served("next") == 1_000_000


def test_whoever_waits_rises_until_it_goes_first() -> None:
    clock = Clock()
    plans = scheduler(1, clock=clock)
    patient = sequence(priority=-1)
    plans.add(sequence(priority=2, new=1))
    plans.add(patient)
    while patient.state is SequenceState.WAITING:
        plans.add(sequence(priority=2, new=1))
        step(plans)
        clock.now += 1.0
        assert clock.now <= 4 * AGEING_SECONDS, "it waits longer than its priority allows"

    assert clock.now > 2 * AGEING_SECONDS


def test_an_urgent_sequence_takes_the_slot_of_the_least_urgent_that_came_last() -> None:
    plans = scheduler(3)
    low, later, normal = sequence(priority=-1, new=9), sequence(priority=-1, new=9), sequence(new=9)
    for waiting in (low, later, normal):
        plans.add(waiting)
    step(plans)
    urgent = sequence(priority=2, new=1)
    plans.add(urgent)
    step(plans)

    assert later.state is SequenceState.WAITING
    assert later.parked is not None
    assert len(later.token_ids) == 1, "what it has generated is kept"
    step(plans)
    assert later.state is SequenceState.DECODING
    assert len(later.token_ids) == 2


def test_equals_never_take_each_others_slots() -> None:
    plans = scheduler(1)
    running, waiting = sequence(new=5), sequence()
    plans.add(running)
    step(plans)
    plans.add(waiting)
    step(plans)

    assert running.state is SequenceState.DECODING
    assert waiting.state is SequenceState.WAITING


def test_who_has_risen_by_waiting_is_not_put_out_again() -> None:
    """Otherwise a stream of urgent ones would let a patient one do one step a turn, at the price of its whole KV."""
    clock = Clock()
    plans = scheduler(1, clock=clock)
    patient = sequence(priority=0, new=9)
    plans.add(sequence(new=1))
    plans.add(patient)
    step(plans)
    clock.now = 1.5 * AGEING_SECONDS
    step(plans)
    plans.add(sequence(priority=1, new=1))
    step(plans)

    assert patient.state is SequenceState.DECODING


def test_while_others_decode_a_step_reads_no_more_of_prompts_than_the_dial_allows() -> None:
    plans = scheduler(2, step_tokens=64, chunk_tokens=10)
    alone, beside = sequence(prompt=60, new=9), sequence(prompt=60, first=100)
    plans.add(alone)
    plans.admit()
    assert plans.plan_step().tokens == 60
    step(plans)
    plans.add(beside)
    plans.admit()

    assert plans.plan_step().tokens == 1 + 10


def test_short_prompts_pass_a_long_one_that_moves_on_all_the_same() -> None:
    plans = scheduler(3, step_tokens=16)
    long, short, shorter = sequence(prompt=100), sequence(prompt=6), sequence(prompt=5)
    for waiting in (long, short, shorter):
        plans.add(waiting)
    plans.admit()

    chunks = {chunk.sequence: chunk.end - chunk.start for chunk in plans.plan_step().chunks}

    assert chunks == {long: 8, shorter: 5, short: 3}


def test_a_prompt_waits_while_a_neighbour_reads_the_same_beginning_and_then_starts_behind_it() -> None:
    plans = scheduler(2, step_tokens=64, reuse_key=lambda _: "all")
    shared = 2 * WORTH_WAITING_TOKENS
    reader, follower = sequence(prompt=shared + 1), sequence(prompt=shared + 5)
    plans.add(reader)
    plans.add(follower)
    step(plans)
    assert follower.state is SequenceState.WAITING
    step(plans)

    assert follower.reused_tokens == shared, "all that the first step has read"


def test_a_follower_does_not_wait_for_a_neighbour_that_has_left() -> None:
    plans = scheduler(2, step_tokens=64, reuse_key=lambda _: "all")
    reader, follower = sequence(prompt=100), sequence(prompt=100)
    plans.add(reader)
    plans.add(follower)
    plans.admit()
    plans.remove(reader)
    plans.admit()

    assert follower.state is SequenceState.PREFILLING


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(-1, 2)), min_size=1, max_size=12), st.integers(0, 64))
def test_the_prompt_budget_is_used_up_and_never_overdrawn(prompts: list[tuple[int, int]], budget: int) -> None:
    reading = [sequence(prompt=length, priority=priority) for length, priority in prompts]
    for number, one in enumerate(reading):
        one.admitted = number
    chunks = share_prompt_budget(reading, budget)

    assert sum(chunk.end - chunk.start for chunk in chunks) == min(budget, sum(length for length, _ in prompts))
    assert all(chunk.start < chunk.end <= chunk.sequence.context_tokens for chunk in chunks)
    assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 20), st.integers(1, 6), st.integers(-1, 2), st.sampled_from("abc"), st.integers(0, 30)
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0, AGEING_SECONDS]),
)
def test_whatever_priorities_and_owners_arrive_everybody_ends_once(
    arriving: list[tuple[int, int, int, str, int]], slots: int, step_seconds: float
) -> None:
    clock = Clock()
    plans = scheduler(slots, step_tokens=slots + 3, clock=clock, reuse_key=lambda one: one.owner)
    made = [
        (sequence(prompt=prompt, new=new, priority=priority, owner=owner), at)
        for prompt, new, priority, owner, at in arriving
    ]
    work = sum(prompt + new for prompt, new, *_ in arriving)
    for now in range(31 + 2 * work):
        for one, at in made:
            if at == now:
                plans.add(one)
        step(plans)
        clock.now += step_seconds
        slots_held = [one.slot for one in plans.running]
        assert len(set(slots_held)) == len(slots_held)
        assert plans.free_sequence_slots == slots - len(slots_held)

    assert all(one.state is SequenceState.FINISHED for one, _ in made)
    assert all(len(one.token_ids) == one.max_new_tokens for one, _ in made)


def test_a_step_that_could_not_hold_every_running_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="step_tokens"):
        scheduler(8, step_tokens=7)
