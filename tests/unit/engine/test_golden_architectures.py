"""The golden rule of serving: batched equals alone, token for token, for every family that the engine holds."""

import pytest
import torch
from transformers import PreTrainedModel

from tests.unit.engine.families import HELD, WINDOW, build
from tests.unit.engine.tiny_models import FAMILIES, build_model, generate, random_prompts

LENGTHS = (5, 17, 70, 9, 23, 31, 1, 48)
"""Prompts longer than a step's 32 tokens are read in chunks; eight sequences share four slots."""
CROWD = {5: 24, 70: 20, 9: 3, WINDOW: 16, 1: 12, 31: 24}
"""Length of each prompt and tokens to generate: some prompts are longer than a window, some grow beyond it."""


@pytest.mark.parametrize("family", HELD)
def test_a_crowd_generates_what_each_sequence_generates_alone(family: str, crowd) -> None:
    """Six sequences share three slots. Each arrives while others decode, and reads its prompt 16 tokens a step."""
    prompts = dict(zip(CROWD, random_prompts(tuple(CROWD)), strict=True))
    alone = build(HELD[family]())
    expected = {length: generate(alone, prompt, CROWD[length]) for length, prompt in prompts.items()}
    together = crowd(build(HELD[family]()), sequence_slots=3, step_tokens=16)

    sequences = {}
    for length, prompt in prompts.items():
        sequences[length] = together.submit(prompt, max_new_tokens=CROWD[length])
        together.engine.step()
        together.engine.step()
    together.run()

    assert {length: list(each.future.result(0).token_ids) for length, each in sequences.items()} == expected
    assert len({tuple(tokens[:3]) for tokens in expected.values()}) == len(CROWD), "texts too much alike"
    assert generate(alone, prompts[31][-WINDOW // 2 :], 8) != expected[31][:8], (
        "the prompt's beginning does not matter"
    )


def test_sequences_that_arrive_while_others_decode_change_nothing(crowd) -> None:
    prompts = random_prompts(LENGTHS)
    alone = build_model(FAMILIES["llama"]())
    expected = [generate(alone, prompt, 20) for prompt in prompts]
    together = crowd(build_model(FAMILIES["llama"]()))

    sequences = []
    for prompt in prompts:
        sequences.append(together.submit(prompt, max_new_tokens=20))
        for _ in range(3):
            together.engine.step()
    together.run()

    assert [list(sequence.future.result(0).token_ids) for sequence in sequences] == expected


def test_an_end_token_ends_a_sequence_as_in_generate(crowd) -> None:
    prompt = random_prompts((9,))[0]
    free = generate(build_model(FAMILIES["llama"]()), prompt, 12)
    end = free[5]
    models: list[PreTrainedModel] = [build_model(FAMILIES["llama"]()) for _ in range(2)]
    for model in models:
        model.generation_config.eos_token_id = [end, 399]
    expected = generate(models[0], prompt, 12)

    result = crowd(models[1]).generate(prompt, max_new_tokens=12)

    assert list(result.token_ids) == expected
    assert result.token_ids[-1] == end
    assert (result.finish_reason, result.completion_tokens) == ("stop", free.index(end) + 1)


def test_logprobs_are_those_of_the_model(crowd) -> None:
    prompt = random_prompts((40,))[0]
    reference = build_model(FAMILIES["qwen3"]())
    result = crowd(build_model(FAMILIES["qwen3"]())).generate(prompt, max_new_tokens=10)

    ids = torch.tensor([[*prompt, *result.token_ids]])
    with torch.no_grad():
        logprobs = reference(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(result.token_ids)[:, None])[:, 0]

    assert torch.allclose(torch.tensor(result.token_logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cpu_kernels", [True, False])
def test_a_bf16_model_runs_over_slots_of_bf16_and_of_fp32(crowd, cpu_kernels: bool) -> None:
    """In bf16 rounding decides near ties, so logprobs are compared and not tokens."""
    prompts = random_prompts(LENGTHS)
    reference = build_model(FAMILIES["llama"]())
    together = crowd(build_model(FAMILIES["llama"]()).bfloat16(), cpu_kernels=cpu_kernels)

    sequences = [together.submit(prompt, max_new_tokens=8) for prompt in prompts]
    together.run()

    for prompt, sequence in zip(prompts, sequences, strict=True):
        result = sequence.future.result(0)
        ids = torch.tensor([[*prompt, *result.token_ids]])
        with torch.no_grad():
            logprobs = reference(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(result.token_ids)[:, None])[:, 0]
        # bf16 keeps 8 bits: a logit of about 4 is off by up to 0.016 a layer.
        assert torch.allclose(torch.tensor(result.token_logprobs), expected, atol=0.15, rtol=0)
