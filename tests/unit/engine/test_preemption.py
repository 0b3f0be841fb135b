"""A sequence that gives its slot to a more urgent one comes to the same text, later."""

import random

import pytest

from tandem.errors import AttemptStopped, OutOfMemory
from tests.unit.engine.served_adapters import served_adapter
from tests.unit.engine.tiny_models import FAMILIES, Crowd, build_model, generate, random_prompts
from worker.engine.sequence import Sequence, SequenceState

# peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def test_after_giving_way_a_text_is_what_it_would_have_been(crowd) -> None:
    model = build_model(FAMILIES["llama"]())
    patient, *urgent = random_prompts((30, 12, 9, 20))
    expected = generate(model, patient, 20)
    together: Crowd = crowd(model, sequence_slots=1, step_tokens=16)
    waiting = together.submit(patient, max_new_tokens=20)
    for prompt in urgent:  # the first takes the slot in the midst of the prompt, the others while it decodes
        together.engine.step()
        together.submit(prompt, priority=1, max_new_tokens=3)
        while together.engine.occupancy.waiting:
            together.engine.step()
    together.run()

    assert list(waiting.future.result(0).token_ids) == expected
    assert together.engine.counts.parked == 3


def test_a_parked_sequence_can_be_cancelled(crowd) -> None:
    together: Crowd = crowd(build_model(FAMILIES["llama"]()), sequence_slots=1)
    patient, urgent = random_prompts((30, 12))
    parked = together.submit(patient, max_new_tokens=20)
    together.engine.step()
    together.submit(urgent, priority=1, max_new_tokens=5)
    together.engine.step()
    assert parked.parked is not None
    parked.cancel()
    together.run()

    assert isinstance(parked.future.exception(0), AttemptStopped)
    assert parked.parked is None, "its keys and values are freed"


def test_an_adapter_is_loaded_again_if_it_lost_its_slot_meanwhile(crowd, tmp_path) -> None:
    model = build_model(FAMILIES["llama"]())
    adapter, other = (served_adapter(tmp_path, name, seed=seed) for seed, name in enumerate(("a", "b"), start=1))
    patient, urgent = random_prompts((30, 12))
    alone: Crowd = crowd(build_model(FAMILIES["llama"]()))
    undisturbed = alone.submit(patient, adapter=adapter, max_new_tokens=15)
    alone.run()
    together: Crowd = crowd(model, sequence_slots=1, adapter_slots=1)
    parked = together.submit(patient, adapter=adapter, max_new_tokens=15)
    for _ in range(4):
        together.engine.step()
    together.submit(urgent, adapter=other, priority=1, max_new_tokens=4)
    together.run()

    assert parked.future.result(0).token_ids == undisturbed.future.result(0).token_ids
    assert together.engine.counts.adapter_loads == 3


def test_who_was_to_copy_from_a_sequence_that_fails_reads_its_prompt_itself(
    crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied from the failed one's slot, which is emptied, it would write nonsense and not know it."""
    model = build_model(FAMILIES["llama"]())
    beginning, tail = random_prompts((40, 7))
    expected = generate(model, [*beginning, *tail], 8)
    together: Crowd = crowd(model)
    make_ready = together.engine._preparation.make_ready
    first = together.submit(beginning, max_new_tokens=1)
    together.run()
    assert first.future.result(0).completion_tokens == 1
    failing = together.submit([*beginning, 1, 2, 3], max_new_tokens=8)
    following = together.submit([*beginning, *tail], max_new_tokens=8)

    def fail_for_one(start, *, spoiled) -> None:
        if start.sequence is failing:
            raise OutOfMemory
        assert start.copies.copy_from in spoiled
        make_ready(start, spoiled=spoiled)

    monkeypatch.setattr(together.engine._preparation, "make_ready", fail_for_one)
    together.engine.step()
    monkeypatch.undo()
    together.run()

    assert isinstance(failing.future.exception(0), OutOfMemory)
    assert list(following.future.result(0).token_ids) == expected


def test_random_events_leave_every_text_right_and_every_slot_free(crowd, tmp_path) -> None:
    """Sequences of all priorities, owners and adapters arrive, are cancelled, give way, share beginnings and end."""
    chance = random.Random(5)
    prompts = random_prompts((3, 17, 33, 40))
    prompts += [[*prompts[3], *tail] for tail in random_prompts((2, 5, 11), seed=2)]
    adapters = [None] + [
        served_adapter(tmp_path, name, seed=seed) for seed, name in enumerate(("a", "b", "c"), start=1)
    ]
    alone: Crowd = crowd(build_model(FAMILIES["llama"]()), kv_reuse="off")
    expected: dict[tuple[int, int], tuple[int, ...]] = {}
    together: Crowd = crowd(build_model(FAMILIES["llama"]()), sequence_slots=3, adapter_slots=2, step_tokens=24)
    alive: list[tuple[Sequence, tuple[int, int]]] = []
    ended = cancelled = 0
    for _ in range(1000):
        if len(alive) < 6 and chance.random() < 0.25:
            which = (chance.randrange(len(prompts)), chance.randrange(len(adapters)))
            if which not in expected:
                reference = alone.submit(prompts[which[0]], adapter=adapters[which[1]], max_new_tokens=8)
                alone.run()
                expected[which] = reference.future.result(0).token_ids
            sequence = together.submit(
                prompts[which[0]],
                adapter=adapters[which[1]],
                priority=chance.randint(-1, 2),
                owner=chance.choice(["one", "two"]),
                max_new_tokens=chance.randint(1, 8),
            )
            alive.append((sequence, which))
        elif alive and chance.random() < 0.03:
            chance.choice(alive)[0].cancel()
        else:
            together.engine.step()
        for sequence, which in [one for one in alive if one[0].state is SequenceState.FINISHED]:
            alive.remove((sequence, which))
            ended += 1
            if isinstance(sequence.future.exception(0), AttemptStopped):
                cancelled += 1
            else:
                tokens = sequence.future.result(0).token_ids
                assert tokens == expected[which][: len(tokens)]
                assert len(tokens) == sequence.max_new_tokens
    together.run()

    counts = together.engine.counts
    assert ended > 100
    assert cancelled > 3
    assert min(counts.parked, counts.reused_tokens, counts.adapter_loads) > 5
