"""How one token is chosen from logits."""

import math
from collections import Counter

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tandem.specs import GenerationParameters
from worker.engine.sampler import Draw, choose

LOGITS = torch.tensor([[0.3, 2.1, -1.0, 1.9, 0.0, 1.2, -3.0, 0.9]])
GRID = 2000
"""Draws at equal distances: the share of a token then is its probability, to 1 / GRID."""


def shares(logits: torch.Tensor, **parameters) -> torch.Tensor:
    """The share of each token over evenly spaced draws."""
    draws = [Draw(GenerationParameters(**parameters), (index + 0.5) / GRID) for index in range(GRID)]
    counted = Counter(chosen.token for chosen in choose(logits.expand(GRID, -1), draws))
    return torch.tensor([counted[token] / GRID for token in range(logits.shape[1])])


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.7, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 0.8, "top_k": 5, "top_p": 0.6},
        {"temperature": 1.0, "top_p": 1e-9},
        {"temperature": 1.0, "top_k": 1000},
    ],
    ids=str,
)
def test_tokens_come_with_the_probabilities_of_transformers(parameters: dict[str, float]) -> None:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(parameters["temperature"])])
    if "top_k" in parameters:
        warpers.append(TopKLogitsWarper(int(parameters["top_k"])))
    if "top_p" in parameters:
        warpers.append(TopPLogitsWarper(parameters["top_p"]))
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), LOGITS)[0].softmax(-1)

    assert torch.allclose(shares(LOGITS, **parameters), expected, atol=1.5 / GRID, rtol=0)


def test_without_a_draw_the_most_probable_token_is_chosen() -> None:
    chosen = choose(LOGITS, [None])[0]

    assert chosen.token == 1
    assert chosen.logprob == pytest.approx(LOGITS[0].log_softmax(-1)[1].item(), abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_a_temperature_near_zero_is_greedy_and_does_not_overflow(temperature: float) -> None:
    assert shares(LOGITS, temperature=temperature)[1] == 1


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_range_give_tokens_that_are_possible(uniform: float) -> None:
    logits = torch.tensor([[-math.inf, 1.0, 2.0, -math.inf]])

    assert choose(logits, [Draw(GenerationParameters(temperature=1.0), uniform)])[0].token in (1, 2)


def test_each_row_is_chosen_by_its_own_parameters() -> None:
    draws = [
        None,
        Draw(GenerationParameters(temperature=1.0), 0.0),
        Draw(GenerationParameters(temperature=1.0), 0.999),
    ]

    assert [chosen.token for chosen in choose(LOGITS.expand(3, -1), draws)] == [1, 0, 7]


def test_logits_that_are_not_finite_show_in_the_logprob() -> None:
    logits = torch.stack([LOGITS[0], torch.full((8,), math.nan)]).repeat(2, 1)
    sampled = Draw(GenerationParameters(temperature=1.0, top_k=2, top_p=0.5), 0.4)

    assert [math.isfinite(row.logprob) for row in choose(logits, [None, None, sampled, sampled])] == [
        True,
        False,
        True,
        False,
    ]
