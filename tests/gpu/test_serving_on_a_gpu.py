"""The engine's golden rules in bfloat16 on a CUDA device, where kernels and recordings take the plain path's place.

Sums of 16 bits depend on the batch, so texts are compared by their log-probabilities: those of the model itself, run
in float32 over prompt and text, within `TOLERANCE`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.unit.engine.served_adapters import served_adapter
from tests.unit.engine.tiny_models import FAMILIES, Crowd, build_model, random_prompts
from worker.engine.decode_graphs import DecodeGraphs, DecodeStep
from worker.engine.kv.token_major import TokenMajorSlots
from worker.engine.sequence import Generated, Sequence

pytestmark = [
    pytest.mark.gpu,
    # peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

COUNT = 24
LENGTHS = (5, 17, 70, 9, 23, 31, 3)
TOLERANCE = 0.1
"""Of a log-probability: three layers, whose sums are rounded to steps of 0.4 %."""

MakeCrowd = Callable[..., Crowd]


def on_gpu(family: str = "llama") -> PreTrainedModel:
    model = build_model(FAMILIES[family]())
    torch.nn.Module.to(model, "cuda", torch.bfloat16)  # the model's own `to` has no usable type
    return model


def graphs(crowd: Crowd) -> DecodeGraphs:
    """The engine's recordings; fails where it has none."""
    assert isinstance(crowd.engine._kv, TokenMajorSlots)
    found = crowd.engine._forward._graphs
    assert found is not None
    return found


def check_logprobs(model: torch.nn.Module, prompt: list[int], result: Generated) -> None:
    """The text's log-probabilities are those that `model`, on the CPU in float32, gives the same tokens."""
    tokens = list(result.token_ids)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(result.token_logprobs), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_crowd_gets_the_models_own_probabilities(family: str, crowd: MakeCrowd) -> None:
    together = crowd(on_gpu(family))
    prompts = random_prompts(LENGTHS)

    sequences = [together.submit(prompt, max_new_tokens=COUNT) for prompt in prompts]
    together.run()

    for prompt, sequence in zip(prompts, sequences, strict=True):
        check_logprobs(build_model(FAMILIES[family]()), prompt, sequence.future.result(0))
    assert graphs(together).fault is None
    assert graphs(together).buckets


def test_recorded_steps_write_what_eager_ones_write(crowd: MakeCrowd) -> None:
    """The same kernels run, so the first tokens are the same even in 16 bits."""
    prompts = random_prompts((9, 9, 9, 9))
    results = []
    for with_graphs in (True, False):
        together = crowd(on_gpu())
        assert graphs(together).fault is None
        if not with_graphs:
            graphs(together).fault = "switched off by this test"
        sequences = [together.submit(prompt, max_new_tokens=COUNT) for prompt in prompts]
        together.run()
        assert bool(graphs(together).buckets) == with_graphs
        results.append([sequence.future.result(0) for sequence in sequences])

    for recorded, eager in zip(*results, strict=True):
        assert recorded.token_ids == eager.token_ids
        assert recorded.token_logprobs == pytest.approx(eager.token_logprobs, abs=TOLERANCE)


def test_mixed_adapters_get_the_probabilities_of_each_alone(tmp_path: Path, crowd: MakeCrowd) -> None:
    adapters = [None, *(served_adapter(tmp_path, f"adapter-{seed}", seed=seed) for seed in range(3))]
    prompts = random_prompts(LENGTHS)
    together, plain = crowd(on_gpu()), crowd(build_model(FAMILIES["llama"]()))

    def run(engine: Crowd) -> list[Sequence]:
        sequences = [
            engine.submit(prompt, adapter=adapters[index % 4], max_new_tokens=COUNT)
            for index, prompt in enumerate(prompts)
        ]
        engine.run()
        return sequences

    for here, there in zip(run(together), run(plain), strict=True):
        found, expected = here.future.result(0), there.future.result(0)
        same = next((i for i in range(COUNT) if found.token_ids[i] != expected.token_ids[i]), COUNT)
        # Up to the first near tie both read the same tokens.
        assert same >= 4
        assert found.token_logprobs[:same] == pytest.approx(expected.token_logprobs[:same], abs=TOLERANCE)
    assert any(bucket.tables for bucket in graphs(together).buckets)


def test_a_reused_beginning_gives_the_same_probabilities(crowd: MakeCrowd) -> None:
    together = crowd(on_gpu())
    beginning, *ends = random_prompts((90, 6, 11))
    for end in ends:
        result = together.generate(beginning + end, max_new_tokens=COUNT)
        check_logprobs(build_model(FAMILIES["llama"]()), beginning + end, result)

    assert together.engine.counts.reused_tokens >= 90


def test_a_preempted_sequence_goes_on_as_it_began(crowd: MakeCrowd) -> None:
    together = crowd(on_gpu(), sequence_slots=1)
    patient, urgent = random_prompts((30, 12))
    first = together.submit(patient, max_new_tokens=COUNT)
    for _ in range(8):
        together.engine.step()
    second = together.submit(urgent, max_new_tokens=COUNT, priority=9)
    together.run()

    assert together.engine.counts.parked == 1
    for prompt, sequence in ((patient, first), (urgent, second)):
        check_logprobs(build_model(FAMILIES["llama"]()), prompt, sequence.future.result(0))


def test_a_seed_draws_the_same_text_again(crowd: MakeCrowd) -> None:
    together = crowd(on_gpu())
    texts = [
        together.generate([7, 8, 9], max_new_tokens=COUNT, temperature=1.0, top_p=0.9, seed=3).token_ids
        for _ in range(2)
    ]

    assert texts[0] == texts[1]


def test_a_recorded_step_waits_for_the_device_once(crowd: MakeCrowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the chosen tokens; the forward itself, from the inputs to the logits, waits for nothing."""
    together = crowd(on_gpu())
    together.generate([7, 8, 9], max_new_tokens=COUNT)
    recordings = graphs(together)
    replay, calls = recordings.run, list[torch.Tensor | None]()

    def without_waiting(step: DecodeStep) -> torch.Tensor | None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            calls.append(replay(step))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return calls[-1]

    monkeypatch.setattr(recordings, "run", without_waiting)
    together.generate([7, 8, 9], max_new_tokens=COUNT)

    assert len(calls) == COUNT - 1
    assert all(logits is not None for logits in calls)
