"""What the engine promises beside the right tokens: fair refusals, cancelling, isolation, and no leaks."""

import threading
import time
from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tandem.errors import (
    AdapterMismatch,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    OutOfMemory,
    PromptTooLong,
    TandemError,
)
from tandem.specs import GenerationParameters
from tests.unit.engine.tiny_models import FAMILIES, SIZES, Crowd, build_model, random_prompts
from worker.engine.adapters.linear_update import LinearUpdate
from worker.engine.adapters.weights import AdapterWeights
from worker.engine.sequence import Sequence, SequenceState

PATH = "model.layers.1.self_attn.q_proj"
LONG_AGO = 0.0
"""Seconds of time.monotonic(), which on Linux began with the machine."""
HOT = {"temperature": 1.0, "top_p": 0.95, "top_k": 200}


@pytest.fixture
def together(crowd) -> Crowd:
    return crowd(build_model(FAMILIES["llama"]()))


def adapter(name: str, *, rank: int = 2, value: float = 0.1, features: int = 64) -> AdapterWeights:
    """Both matrices hold `value`; B holds its scaling of 2 already."""
    update = LinearUpdate(a=torch.full((rank, features), value), b=torch.full((rank, 64), 2 * value))
    return AdapterWeights(name, {PATH: update})


def test_the_same_seed_gives_the_same_text_alone_and_in_a_crowd(together: Crowd) -> None:
    prompt, *others = random_prompts((12, 5, 40, 9, 22, 31))
    alone = together.generate(prompt, max_new_tokens=20, seed=7, **HOT)

    neighbours = [together.submit(other, max_new_tokens=25, seed=8, **HOT) for other in others[:3]]
    crowded = together.submit(prompt, max_new_tokens=20, seed=7, **HOT)
    neighbours += [together.submit(other, max_new_tokens=25) for other in others[3:]]
    together.run()

    assert crowded.future.result(0).token_ids == alone.token_ids
    assert crowded.future.result(0).text == alone.text
    assert together.generate(prompt, max_new_tokens=20, seed=9, **HOT).token_ids != alone.token_ids
    assert all(neighbour.future.result(0).completion_tokens == 25 for neighbour in neighbours)


def test_a_pinned_adapter_is_loaded_once_however_many_others_come(crowd) -> None:
    together = crowd(build_model(FAMILIES["llama"]()), adapter_slots=2)
    together.engine.pinned_adapters = frozenset({"pinned"})
    for name in ("pinned", "a", "b", "pinned"):
        together.generate([1, 2, 3], adapter=adapter(name), max_new_tokens=2)
    assert together.engine.counts.adapter_loads == 3


def test_it_counts_the_tensors_that_it_holds_beside_the_models(crowd) -> None:
    """Keys and values from the start, a layer's table of adapters from the first adapter that needs it."""
    together = crowd(build_model(FAMILIES["llama"]()), packed_linears=False)
    engine = together.engine
    kv = engine._kv
    assert engine.bytes == sum(tensor.nbytes for tensor in (*kv.keys, *kv.values))

    together.generate([1, 2, 3], adapter=adapter("a"), max_new_tokens=2)
    table = engine._bank.linears[PATH].slots._pairs
    assert engine.bytes - engine.kv_bytes >= table.a.nbytes + table.b.nbytes > 0
    assert table.a.nbytes == 4 * 8 * 64 * 4, "adapter slots, rank, inputs, bytes of a float32"


def test_without_a_seed_texts_differ(together: Crowd) -> None:
    prompt = random_prompts((12,))[0]
    texts = {together.generate(prompt, max_new_tokens=20, **HOT).token_ids for _ in range(3)}

    assert len(texts) == 3


def test_a_stop_string_ends_the_text_wherever_the_tokens_border(together: Crowd) -> None:
    """The stop string begins within one token and ends within another."""
    prompt = random_prompts((14,))[0]
    free = together.generate(prompt, max_new_tokens=40)
    middle = len(free.text) // 2
    for start, length in ((middle, 1), (middle, 3), (middle + 1, 5), (middle - 2, 8)):
        stop = free.text[start : start + length]
        shown: list[str] = []

        result = together.generate(prompt, max_new_tokens=40, stop=[stop, "never there"], on_text=shown.append)

        assert result.text == free.text[: free.text.index(stop)]
        assert result.finish_reason == "stop"
        assert result.token_ids == free.token_ids[: result.completion_tokens]
        assert "".join(shown) == result.text


def test_text_is_told_piece_by_piece_while_it_is_generated(together: Crowd) -> None:
    shown: list[str] = []
    sequence = together.submit(random_prompts((6,))[0], max_new_tokens=30, on_text=shown.append)
    for _ in range(20):
        together.engine.step()
    early = "".join(shown)
    assert early
    assert not sequence.future.done()
    together.run()

    assert "".join(shown) == sequence.future.result(0).text
    assert sequence.future.result(0).text.startswith(early)


def test_a_cancelled_sequence_leaves_at_the_next_step(together: Crowd) -> None:
    prompts = random_prompts((9,) * 6)
    running, neighbour, *_, waiting = [together.submit(prompt, max_new_tokens=30) for prompt in prompts]
    together.engine.step()
    running.cancel()
    waiting.cancel()
    together.engine.step()

    for cancelled in (running, waiting):
        with pytest.raises(Cancelled):
            cancelled.future.result(0)
        assert cancelled.state is SequenceState.FINISHED
    together.run()
    assert neighbour.future.result(0).completion_tokens == 30


@pytest.mark.parametrize("stop", [Sequence.cancel, lambda sequence: setattr(sequence, "deadline", LONG_AGO)])
@pytest.mark.parametrize("steps_before", range(6))
def test_whenever_a_sequence_must_stop_the_next_forward_is_without_it(
    together: Crowd, stop: Callable[[Sequence], None], steps_before: int
) -> None:
    """Not yet admitted, in the midst of its prompt (64 tokens in chunks of 32, behind a neighbour) or decoding."""
    neighbour = together.submit(random_prompts((9,))[0], max_new_tokens=30)
    stopped = together.submit(random_prompts((64,))[0], max_new_tokens=30)
    for _ in range(steps_before):
        together.engine.step()
    read, written = stopped.prefilled, len(stopped.token_ids)
    stop(stopped)
    together.engine.step()

    assert isinstance(stopped.future.exception(0), Cancelled | DeadlineExceeded)
    assert (stopped.prefilled, len(stopped.token_ids)) == (read, written)
    together.run()
    assert neighbour.future.result(0).completion_tokens == 30


def test_a_sequence_past_its_deadline_leaves_even_while_it_waits_for_a_slot(together: Crowd) -> None:
    running = [together.submit(prompt, max_new_tokens=30) for prompt in random_prompts((9,) * 4)]
    waiting = Sequence([1, 2], GenerationParameters(), deadline=time.monotonic() + 1000)
    together.engine.submit(waiting)
    together.engine.step()
    assert together.engine.occupancy.waiting == 1
    assert not waiting.future.done()
    waiting.deadline = LONG_AGO
    together.engine.step()

    with pytest.raises(DeadlineExceeded):
        waiting.future.result(0)
    assert together.engine.occupancy.waiting == 0
    together.run()
    assert [sequence.future.result(0).completion_tokens for sequence in running] == [30] * 4


def test_the_slot_of_a_sequence_past_its_deadline_is_given_on_in_the_same_step(together: Crowd) -> None:
    prompts = random_prompts((9,) * 5)
    late, *_, successor = [together.submit(prompt, max_new_tokens=30) for prompt in prompts]
    together.engine.step()
    late.deadline = LONG_AGO
    together.engine.step()

    assert isinstance(late.future.exception(0), DeadlineExceeded)
    assert successor.state is not SequenceState.WAITING
    together.run()
    assert successor.future.result(0).completion_tokens == 30


def test_a_deadline_that_lies_ahead_changes_nothing(together: Crowd) -> None:
    sequence = Sequence([5, 6, 7], GenerationParameters(max_new_tokens=6), deadline=time.monotonic() + 1000)
    together.engine.submit(sequence)
    together.run()

    assert sequence.future.result(0) == together.generate([5, 6, 7], max_new_tokens=6)


def test_what_is_cancelled_while_adapters_load_is_in_no_forward(
    together: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = together.submit(random_prompts((9,))[0], adapter=adapter("slow"), max_new_tokens=5)
    load = together.engine._bank.load

    def cancelled_meanwhile(slot: int, weights: AdapterWeights) -> None:
        load(slot, weights)
        sequence.cancel()

    monkeypatch.setattr(together.engine._bank, "load", cancelled_meanwhile)
    together.engine.step()

    assert isinstance(sequence.future.exception(0), Cancelled)
    assert sequence.prefilled == 0


def test_forwards_and_early_ends_are_progress_and_idle_steps_are_not(
    together: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = together.engine
    engine.step()
    assert engine.progress == 0
    together.generate([1, 2, 3], max_new_tokens=4)
    assert engine.progress == 4
    together.submit([1, 2, 3]).cancel()
    engine.step()
    assert engine.progress == 5
    together.submit([1, 2, 3])
    monkeypatch.setattr("worker.engine.forward.choose", lambda *_: 1 / 0)
    engine.step()
    assert engine.progress == 6


def test_cancelling_what_is_finished_changes_nothing(together: Crowd) -> None:
    sequence = together.submit(random_prompts((9,))[0], max_new_tokens=1)
    together.run()
    sequence.cancel()
    together.engine.step()

    assert sequence.future.result(0).completion_tokens == 1


def test_a_prompt_that_leaves_no_room_is_refused(together: Crowd) -> None:
    with pytest.raises(PromptTooLong, match=r"256 tokens and asks for 5 .*256") as refused:
        together.submit([1] * 256, max_new_tokens=5)
    assert refused.value.param == "inputs"


def test_more_new_tokens_than_fit_are_lowered_to_what_fits(together: Crowd) -> None:
    result = together.generate([1] * 250, max_new_tokens=1000)

    assert (result.finish_reason, result.completion_tokens) == ("length", 6)


def test_the_context_is_the_smaller_of_slot_and_model(crowd) -> None:
    assert crowd(build_model(FAMILIES["llama"]()), slot_tokens=100).engine.max_context == 100
    assert crowd(build_model(FAMILIES["llama"]()), slot_tokens=5000).engine.max_context == 256


@pytest.mark.parametrize("prompt", [[], [400], [-1]])
def test_a_prompt_that_no_embedding_has_is_refused(prompt: list[int], together: Crowd) -> None:
    with pytest.raises(InvalidRequest) as refused:
        together.submit(prompt)
    assert refused.value.param == "inputs"


def test_an_adapter_that_does_not_fit_is_refused(together: Crowd, crowd) -> None:
    with pytest.raises(InvalidRequest, match=r"rank 9.*up to 8"):
        together.submit([1], adapter=adapter("wide", rank=9))
    with pytest.raises(AdapterMismatch, match=PATH):
        together.submit([1], adapter=adapter("other", features=32))
    with pytest.raises(AdapterMismatch, match="no linear layer"):
        together.submit([1], adapter=AdapterWeights("other", {"model.layers.7.x": adapter("x").modules[PATH]}))
    without = crowd(build_model(FAMILIES["llama"]()), adapter_slots=0)
    with pytest.raises(InvalidRequest, match="serves no adapters"):
        without.submit([1], adapter=adapter("any"))


def test_a_failing_step_fails_its_own_sequences_only(together: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prompts((9,) * 6)
    expected = together.generate(prompts[-1], max_new_tokens=5).token_ids
    sequences = [together.submit(prompt, max_new_tokens=5) for prompt in prompts]
    with monkeypatch.context() as broken:
        broken.setattr("worker.engine.forward.choose", lambda *_: 1 / 0)
        together.engine.step()
    in_step = [sequence for sequence in sequences if sequence.future.done()]
    together.run()

    assert len(in_step) == 4
    for failed in in_step:
        with pytest.raises(ZeroDivisionError):
            failed.future.result(0)
    assert sequences[-1].future.result(0).token_ids == expected


def test_a_failing_listener_fails_its_own_sequence_only(together: Crowd) -> None:
    def listener(_: str) -> None:
        raise OSError("the listener is gone")

    deaf = together.submit(random_prompts((9,))[0], max_new_tokens=20, on_text=listener)
    other = together.submit(random_prompts((9,))[0], max_new_tokens=20)
    together.run()

    with pytest.raises(OSError, match="gone"):
        deaf.future.result(0)
    assert other.future.result(0).completion_tokens == 20


def test_an_adapter_that_cannot_be_loaded_fails_its_own_sequences_only(
    together: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = random_prompts((9,))[0]
    expected = together.generate(prompt, adapter=adapter("fine"), max_new_tokens=5).token_ids
    load = together.engine._bank.load

    def failing_for_one(slot: int, weights: AdapterWeights) -> None:
        if weights.id == "broken":
            raise OutOfMemory
        load(slot, weights)

    monkeypatch.setattr(together.engine._bank, "load", failing_for_one)
    failing = [together.submit(prompt, adapter=adapter("broken"), max_new_tokens=5) for _ in range(2)]
    fine = together.submit(prompt, adapter=adapter("fine"), max_new_tokens=5)
    together.run()

    for failed in failing:
        with pytest.raises(OutOfMemory):
            failed.future.result(0)
    assert fine.future.result(0).token_ids == expected


def test_an_output_that_is_not_finite_reaches_nobody_else(together: Crowd) -> None:
    """Finite weights can still overflow in a product; 0 * inf is NaN, in the batch and in a slot used again."""
    prompts = random_prompts((20, 11, 6))
    expected = [together.generate(prompt, max_new_tokens=10).token_ids for prompt in prompts]
    wild = adapter("wild", value=1e38)
    for _ in range(3):
        failing = [together.submit(prompt, adapter=wild, max_new_tokens=10) for prompt in prompts]
        fine = [together.submit(prompt, max_new_tokens=10) for prompt in prompts]
        together.run()

        for failed in failing:
            with pytest.raises(TandemError, match="not finite"):
                failed.future.result(0)
        assert [sequence.future.result(0).token_ids for sequence in fine] == expected


def test_a_sequence_is_submitted_once(together: Crowd) -> None:
    sequence = together.submit([1, 2], max_new_tokens=1)
    with pytest.raises(RuntimeError, match="unexpected state"):
        together.engine.submit(sequence)
    together.run()


def test_a_future_cancelled_before_it_is_submitted_never_runs(together: Crowd) -> None:
    sequence = Sequence([1, 2], GenerationParameters())
    sequence.future.cancel()
    together.engine.submit(sequence)

    assert not together.engine.has_work()


def test_abandoning_fails_what_is_left_and_the_engine_goes_on(together: Crowd) -> None:
    sequences = [together.submit(prompt, max_new_tokens=9) for prompt in random_prompts((9,) * 6)]
    together.engine.step()
    late = together.submit([1, 2, 3])
    together.engine.abandon(TandemError("over"))

    for sequence in (*sequences, late):
        with pytest.raises(TandemError, match="over"):
            sequence.future.result(0)
    assert together.generate([1, 2, 3], max_new_tokens=2).completion_tokens == 2


def test_sequences_may_come_from_many_threads(together: Crowd) -> None:
    expected = together.generate([5, 6, 7], max_new_tokens=6).token_ids
    submitted: list[Sequence] = []

    def producer() -> None:
        submitted.extend(together.submit([5, 6, 7], max_new_tokens=6) for _ in range(5))

    threads = [threading.Thread(target=producer) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or together.engine.has_work():
        together.engine.step()

    assert len(submitted) == 20
    assert {sequence.future.result(0).token_ids for sequence in submitted} == {expected}


def test_the_state_dict_stays_that_of_the_plain_model(together: Crowd, crowd) -> None:
    """A twin for training is made of it: the same names and the very same weights, and no adapter slots."""
    model = build_model(LlamaConfig(tie_word_embeddings=True, **SIZES))
    before = {name: weight.data_ptr() for name, weight in model.state_dict().items()}
    engine = crowd(model)
    engine.generate([1, 2, 3], adapter=adapter("used"), max_new_tokens=2)

    assert {name: weight.data_ptr() for name, weight in model.state_dict().items()} == before

    twin = AutoModelForCausalLM.from_config(LlamaConfig(tie_word_embeddings=True, **SIZES))
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.tie_weights()
    assert twin.model.layers[1].self_attn.q_proj.weight.data_ptr() == before[PATH + ".weight"]


def test_the_model_runs_only_through_its_engine(crowd) -> None:
    """Its attention needs a step's layout; without one it would silently ignore a mask."""
    model = build_model(FAMILIES["llama"]())
    crowd(model)

    with torch.inference_mode(), pytest.raises(RuntimeError, match="through the engine only"):
        model(torch.tensor([[1, 2, 3]]))
