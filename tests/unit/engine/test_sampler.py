"""How one token is chosen from logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from tests.unit.engine.samplings import OnlyThese, sampling
from worker.engine.tokens.sampler import choose, processed

LOGITS = torch.tensor([[0.3, 2.1, -1.0, 1.9, 0.0, 1.2, -3.0, 0.9]])
VOCABULARY = 1000
PROMPT = [5, 9, 9, 700, 3]
WRITTEN = [9, 41, 41, 41, 3]


def random_logits(rows: int, *, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    ("parameters", "reference"),
    [
        ({"repetition_penalty": 1.3}, RepetitionPenaltyLogitsProcessor(1.3)),
        ({"repetition_penalty": 0.7}, RepetitionPenaltyLogitsProcessor(0.7)),
        (
            {"logit_bias": {3: 5.0, 41: -2.5, 999: -100.0}},
            SequenceBiasLogitsProcessor([[[3], 5.0], [[41], -2.5], [[999], -100.0]]),
        ),
        (
            {"min_new_tokens": len(WRITTEN) + 1},
            MinNewTokensLengthLogitsProcessor(len(PROMPT), len(WRITTEN) + 1, [7, 8], device="cpu"),
        ),
        (
            {"min_new_tokens": len(WRITTEN)},
            MinNewTokensLengthLogitsProcessor(len(PROMPT), len(WRITTEN), [7, 8], device="cpu"),
        ),
    ],
    ids=["repetition_penalty", "repetition_reward", "logit_bias", "min_new_tokens", "min_new_tokens_reached"],
)
def test_logits_are_processed_exactly_as_by_transformers(parameters: dict, reference: LogitsProcessor) -> None:
    logits = random_logits(3)
    expected = reference(torch.tensor([PROMPT + WRITTEN] * 3), logits.clone())
    rows = [sampling(prompt=PROMPT, generated=WRITTEN, end_tokens={7, 8}, **parameters) for _ in range(3)]

    assert torch.equal(processed(logits.clone(), rows), expected)


def test_a_bias_comes_before_the_repetition_penalty_as_in_transformers() -> None:
    logits = random_logits(1)
    ids = torch.tensor([PROMPT + WRITTEN])
    expected = SequenceBiasLogitsProcessor([[[41], 5.0], [[6], 1.0]])(ids, logits.clone())
    expected = RepetitionPenaltyLogitsProcessor(1.5)(ids, expected)
    row = sampling(prompt=PROMPT, generated=WRITTEN, repetition_penalty=1.5, logit_bias={41: 5.0, 6: 1.0})

    assert torch.equal(processed(logits, [row]), expected)


def test_presence_and_frequency_count_generated_tokens_as_openai_says() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence; the prompt's tokens do not count."""
    logits = random_logits(1)
    counts = torch.bincount(torch.tensor(WRITTEN), minlength=VOCABULARY)
    expected = logits - 0.5 * counts - 0.25 * (counts > 0)
    row = sampling(prompt=PROMPT, generated=WRITTEN, frequency_penalty=0.5, presence_penalty=0.25)

    assert torch.equal(processed(logits.clone(), [row]), expected)


def test_rows_with_and_without_adjustments_do_not_touch_each_other() -> None:
    logits = random_logits(3)
    rows = [
        sampling(generated=WRITTEN, presence_penalty=1.0),
        sampling(temperature=1.0),
        sampling(prompt=PROMPT, repetition_penalty=2.0),
    ]
    together = processed(logits.clone(), rows)

    assert torch.equal(together[1], logits[1])
    for row in range(3):
        assert torch.equal(together[row], processed(logits[row : row + 1].clone(), [rows[row]])[0])


def test_stop_tokens_are_forbidden_like_end_tokens_until_min_new_tokens() -> None:
    row = sampling(end_tokens={1}, stop_token_ids=[3], min_new_tokens=2)

    assert choose(LOGITS, [row])[0].token == 5  # 1 and 3 have the largest logits
    row.accept(5)
    assert choose(LOGITS, [row])[0].token == 5
    row.accept(5)
    assert choose(LOGITS, [row])[0].token == 1


def test_a_constraint_leaves_only_what_may_follow() -> None:
    """Others in the batch are not bound by it, whether greedy or drawn."""
    rows = [
        sampling(),
        sampling(constraint=OnlyThese({2, 6})),
        sampling(constraint=OnlyThese({2, 6}), temperature=1.0, uniform=0.999),
    ]

    assert [chosen.token for chosen in choose(LOGITS.expand(3, -1), rows)] == [1, 2, 6]


def test_a_constraint_that_leaves_only_an_end_wins_over_min_new_tokens() -> None:
    row = sampling(constraint=OnlyThese({4}), end_tokens={4, 1}, min_new_tokens=3)

    assert choose(LOGITS, [row])[0].token == 4


def test_logprobs_are_the_models_own_whatever_is_done_to_the_logits() -> None:
    logits = random_logits(3)
    rows = [
        sampling(logprobs=True),
        sampling(temperature=1.7, top_k=4, uniform=0.3, logprobs=True),
        sampling(prompt=range(900), repetition_penalty=3.0, logit_bias={950: 100.0}, logprobs=True),
    ]

    for row, chosen in enumerate(choose(logits, rows)):
        assert chosen.logprob == pytest.approx(logits[row].log_softmax(-1)[chosen.token].item(), abs=1e-5)
        assert chosen.top == ()


def test_the_most_probable_tokens_are_told_to_those_who_asked() -> None:
    logits = random_logits(3)
    rows = [sampling(), *(sampling(logprobs=True, top_logprobs=count) for count in (3, 20))]
    nothing, three, twenty = (chosen.top for chosen in choose(logits, rows))

    assert nothing == ()
    for row, found in ((1, three), (2, twenty)):
        expected = logits[row].log_softmax(-1).topk(len(found))
        assert [token for token, _ in found] == expected.indices.tolist()
        assert [logprob for _, logprob in found] == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert (len(three), len(twenty)) == (3, 20)


def test_a_small_vocabulary_tells_all_it_has() -> None:
    (chosen,) = choose(LOGITS, [sampling(logprobs=True, top_logprobs=20)])

    assert len(chosen.top) == LOGITS.shape[1]


def test_logits_that_are_not_finite_show_in_the_logprob() -> None:
    logits = torch.stack([LOGITS[0], torch.full((8,), math.nan)]).repeat(3, 1)
    rows = [
        sampling(),
        sampling(),
        *(sampling(temperature=1.0, top_k=2, top_p=0.5, uniform=0.4) for _ in range(2)),
        *(sampling(temperature=1.0, min_p=0.1, uniform=0.4) for _ in range(2)),
    ]

    assert [math.isfinite(chosen.logprob) for chosen in choose(logits, rows)] == [True, False] * 3


PARAMETERS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 40, 300, 5000]),
        "top_p": st.sampled_from([1.0, 0.95, 0.3]),
        "min_p": st.sampled_from([0.0, 0.05]),
        "repetition_penalty": st.sampled_from([1.0, 1.2]),
        "presence_penalty": st.sampled_from([0.0, 0.7]),
        "min_new_tokens": st.sampled_from([0, 9]),
        "seed": st.integers(0, 2**32),
    }
)


@settings(max_examples=30, deadline=None)  # a busy machine is no failure
@given(parameters=st.lists(PARAMETERS, min_size=2, max_size=8), seed=st.integers(0, 2**32))
def test_company_changes_no_choice(parameters: list[dict], seed: int) -> None:
    """Every row alone gets the token that it gets in the batch, drawn by its own seed."""
    logits = random_logits(len(parameters), seed=seed, vocabulary=6000)

    def rows():
        return [sampling(prompt=PROMPT, generated=WRITTEN, end_tokens={7}, **each) for each in parameters]

    together = choose(logits, rows())
    alone = [choose(logits[row : row + 1], [each])[0] for row, each in enumerate(rows())]

    assert [chosen.token for chosen in together] == [chosen.token for chosen in alone]
