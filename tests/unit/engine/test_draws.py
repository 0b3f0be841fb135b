"""How tokens are drawn: with transformers' probabilities, and from a row's own number alone."""

import math
from collections import Counter

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.unit.engine.samplings import sampling
from worker.engine.tokens.draws import FEW, draw

LOGITS = torch.tensor([[0.3, 2.1, -1.0, 1.9, 0.0, 1.2, -3.0, 0.9]])
NARROW = 1e-9
"""Tokens less probable than this are not drawn in the test: rounding decides where they stand."""

TOKENS = 60
"""About so many tokens are drawn, in even distances over all that are possible."""


def warped(logits: torch.Tensor, parameters: dict) -> torch.Tensor:
    """The probabilities that transformers' warpers leave, in the order in which generate() runs them; float64."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(parameters["temperature"])])
    if "top_k" in parameters:
        warpers.append(TopKLogitsWarper(parameters["top_k"]))
    if "top_p" in parameters:
        warpers.append(TopPLogitsWarper(parameters["top_p"]))
    if "min_p" in parameters:
        warpers.append(MinPLogitsWarper(parameters["min_p"]))
    return warpers(torch.zeros(1, 1, dtype=torch.long), logits.double())[0].softmax(-1)


@pytest.mark.parametrize("vocabulary", [8, 300, 6000])
@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.7, "top_k": 3},
        {"temperature": 1.7, "top_k": 280},
        {"temperature": 1.7, "top_k": 5000},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.9, "top_p": 0.999},
        {"temperature": 0.8, "top_k": 5, "top_p": 0.6},
        {"temperature": 2.0, "top_k": 5000, "top_p": 0.95, "min_p": 0.001},
        {"temperature": 1.0, "top_p": 1e-9},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.3, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 1.0, "min_p": 1.0},
    ],
    ids=str,
)
def test_every_token_is_drawn_by_its_part_of_the_numbers(parameters: dict, vocabulary: int) -> None:
    """Tokens share [0, 1) in the order of the vocabulary, each with its probability by transformers.

    The number in the middle of a token's share draws it: one token too many or too few anywhere would shift others.
    """
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 2
    probabilities = warped(logits, parameters)
    ends = probabilities.cumsum(-1)
    tokens = (probabilities > NARROW).nonzero()[:, 0]
    tokens = tokens[:: max(1, len(tokens) // TOKENS)]
    middles = (ends[tokens] - probabilities[tokens] / 2).tolist()
    drawn = draw(
        logits.expand(len(tokens), -1).contiguous(),
        [sampling(**parameters, uniform=middle) for middle in middles],
    )

    assert torch.equal(drawn, tokens)


def test_the_test_above_needs_more_than_few_tokens_of_some() -> None:
    flat = warped(torch.randn(1, 6000, generator=torch.Generator().manual_seed(6000)) * 2, {"temperature": 1.9})

    assert FEW < (flat.sort(descending=True).values.cumsum(-1) < 0.999).sum() < 6000


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_a_temperature_near_zero_is_greedy_and_does_not_overflow(temperature: float) -> None:
    rows = [
        sampling(temperature=temperature, uniform=uniform, top_p=top_p)
        for uniform in (0.0, 0.5, 0.999)
        for top_p in (1.0, 0.9)
    ]

    assert draw(LOGITS.repeat(len(rows), 1), rows).tolist() == [1] * len(rows)


@pytest.mark.parametrize("cut", [{}, {"top_k": 4}, {"top_p": 0.99}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_range_give_tokens_that_are_possible(uniform: float, cut: dict) -> None:
    logits = torch.tensor([[-math.inf, 1.0, 2.0, -math.inf]])

    assert draw(logits, [sampling(temperature=1.0, uniform=uniform, **cut)]).item() in (1, 2)


def test_of_equal_logits_top_k_and_top_p_keep_as_few_as_asked() -> None:
    """16-bit models have many equal logits: to keep all of them would make `top_k` 1 a lottery."""
    logits = torch.zeros(1, 600)
    logits[0, :300] = -1.0
    for cut, count in (({"top_k": 1}, 1), ({"top_p": 1e-6}, 1), ({"top_k": 290}, 290), ({"top_p": 0.5}, 206)):
        rows = [sampling(temperature=1.0, uniform=(i + 0.5) / 2000, **cut) for i in range(2000)]
        drawn = Counter(draw(logits.repeat(2000, 1), rows).tolist())
        assert len(drawn) == count  # 300 times (1 + 1/e) weigh all together
        assert min(drawn) >= 300


def test_each_row_is_drawn_by_its_own_parameters() -> None:
    rows = [
        sampling(temperature=1.0, uniform=0.0),
        sampling(temperature=1.0, uniform=0.999),
        sampling(temperature=1.0, uniform=0.999, top_k=1),
        sampling(temperature=1.0, uniform=0.999, top_p=0.5),
    ]

    assert draw(LOGITS.repeat(4, 1), rows).tolist() == [0, 7, 1, 3]
