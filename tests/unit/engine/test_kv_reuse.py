"""Prompts that begin alike are read once, and nobody's text changes by it."""

import pytest

from tests.unit.engine.served_adapters import served_adapter
from tests.unit.engine.tiny_models import FAMILIES, Crowd, build_model, generate, random_prompts
from worker.engine.scheduling.scheduler import WORTH_WAITING_TOKENS
from worker.engine.sequence import Generated, Sequence

# peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SHARED, *TAILS = random_prompts((60, 7, 12, 3))
PROMPTS = [[*SHARED, *tail] for tail in TAILS]


def ask(crowd: Crowd, prompt: list[int], *, owner: str = "", count: int = 10) -> Generated:
    sequence = crowd.submit(prompt, owner=owner, max_new_tokens=count)
    crowd.run()
    return sequence.future.result(0)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_a_text_is_the_same_whether_its_beginning_was_read_or_reused(crowd, family: str) -> None:
    model = build_model(FAMILIES[family]())
    alone = [generate(model, prompt, 10) for prompt in PROMPTS]
    together: Crowd = crowd(model)

    for prompt, expected in zip(PROMPTS, alone, strict=True):
        assert list(ask(together, prompt).token_ids) == expected
    assert together.engine.counts.reused_tokens == 2 * len(SHARED)


def test_a_crowd_that_arrives_together_reads_its_common_beginning_once(crowd) -> None:
    model = build_model(FAMILIES["llama"]())
    alone = [generate(model, prompt, 10) for prompt in PROMPTS]
    together: Crowd = crowd(model, step_tokens=16)
    sequences = [together.submit(prompt, max_new_tokens=10) for prompt in PROMPTS]
    together.run()

    assert [list(sequence.future.result(0).token_ids) for sequence in sequences] == alone
    assert together.engine.counts.reused_tokens >= 2 * (len(SHARED) - WORTH_WAITING_TOKENS)


def test_the_next_turn_of_a_conversation_reads_only_what_is_new(crowd) -> None:
    model = build_model(FAMILIES["llama"]())
    together: Crowd = crowd(model)
    first = ask(together, PROMPTS[0])
    turn = [*PROMPTS[0], *first.token_ids, 5, 6, 7]
    expected = generate(build_model(FAMILIES["llama"]()), turn, 10)

    assert list(ask(together, turn).token_ids) == expected
    # All of the first turn but its last token, which was never read.
    assert together.engine.counts.reused_tokens == len(PROMPTS[0]) + len(first.token_ids) - 1


def test_owners_do_not_share_unless_they_are_told_to(crowd) -> None:
    """The time to the first token would tell one tenant what another has asked."""
    apart: Crowd = crowd(build_model(FAMILIES["llama"]()))
    for owner in ("one", "two"):
        ask(apart, PROMPTS[0], owner=owner)
    assert apart.engine.counts.reused_tokens == 0

    sharing: Crowd = crowd(build_model(FAMILIES["llama"]()), kv_reuse="shared")
    for owner in ("one", "two"):
        ask(sharing, PROMPTS[0], owner=owner)
    assert sharing.engine.counts.reused_tokens == len(PROMPTS[0]) - 1


def test_reuse_can_be_switched_off(crowd) -> None:
    together: Crowd = crowd(build_model(FAMILIES["llama"]()), kv_reuse="off")
    for _ in range(2):
        ask(together, PROMPTS[0])

    assert together.engine.counts.reused_tokens == 0


def test_an_adapter_never_runs_on_keys_and_values_of_another(crowd, tmp_path) -> None:
    """Symptom elsewhere: an adapter answers as the base does, since prefixes were keyed by their tokens alone."""
    model = build_model(FAMILIES["llama"]())
    adapters = [served_adapter(tmp_path, name, seed=seed) for seed, name in enumerate(("a", "b"), start=1)]
    fresh = []
    for adapter in (None, *adapters):
        alone: Crowd = crowd(build_model(FAMILIES["llama"]()))
        sequence = alone.submit(PROMPTS[0], adapter=adapter, max_new_tokens=10)
        alone.run()
        fresh.append(sequence.future.result(0).token_ids)
    assert len(set(fresh)) == 3

    together: Crowd = crowd(model)
    for adapter, expected in (*zip((None, *adapters), fresh, strict=True),) * 2:
        sequence = together.submit(PROMPTS[0], adapter=adapter, max_new_tokens=10)
        together.run()
        assert sequence.future.result(0).token_ids == expected
    assert together.engine.counts.reused_tokens == 3 * (len(PROMPTS[0]) - 1), "the second time each finds its own"


def test_what_a_failed_sequence_has_left_is_not_used(crowd) -> None:
    together: Crowd = crowd(build_model(FAMILIES["llama"]()))

    def fail(_: str) -> None:
        raise RuntimeError("the listener is gone")

    failing = together.submit(PROMPTS[0], on_text=fail, max_new_tokens=10)
    together.run()
    assert failing.future.exception(0) is not None
    ask(together, PROMPTS[0])

    assert together.engine.counts.reused_tokens == 0


def test_a_cancelled_sequence_leaves_what_it_has_read(crowd) -> None:
    together: Crowd = crowd(build_model(FAMILIES["llama"]()))
    cancelled: Sequence = together.submit(PROMPTS[0], max_new_tokens=50)
    for _ in range(5):
        together.engine.step()
    cancelled.cancel()
    together.run()
    expected = generate(build_model(FAMILIES["llama"]()), PROMPTS[1], 10)

    assert list(ask(together, PROMPTS[1]).token_ids) == expected
    assert together.engine.counts.reused_tokens == len(SHARED)
