"""Chooses each sequence's next token from the step's logits."""

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from tandem.specs import GenerationParameters


@dataclass(frozen=True)
class Draw:
    """How one row's token is chosen."""

    parameters: GenerationParameters
    uniform: float
    """A number in [0, 1) of the sequence's own random stream: who else is in the batch does not change it."""


@dataclass(frozen=True)
class Chosen:
    """One row's next token."""

    token: int
    logprob: float
    """Natural log of its probability under the model, before temperature and cuts; NaN for logits with NaN."""


def choose(logits: torch.Tensor, draws: Rows[Draw | None]) -> list[Chosen]:
    """The next token of each row of `logits` ([rows, vocabulary]); greedy where the draw is None."""
    logits = logits.float()
    tokens = logits.argmax(dim=-1)
    for row, draw in enumerate(draws):
        if draw is not None:
            tokens[row] = _sample(logits[row], draw)
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
    return [Chosen(token, logprob) for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True)]


def _sample(logits: torch.Tensor, draw: Draw) -> torch.Tensor:
    """One token of a row by inversion: the first at which the summed probability passes the uniform draw.

    Summed in the order of the vocabulary and in float64: the last bits of the logits, which vary with the batch,
    then move only the borders between tokens, and by no more than themselves.
    """
    # The largest becomes 0 before the division, so that no temperature above 0 can overflow.
    scaled = (logits.double() - logits.max()) / draw.parameters.temperature
    reached = _cut(scaled, draw.parameters).softmax(dim=-1).cumsum(dim=-1)
    token = torch.searchsorted(reached, reached[-1:] * draw.uniform, right=True)
    # Rounding may put the draw at the very end; meant is then the last token that adds any probability.
    last = torch.searchsorted(reached, reached[-1:]).clamp(max=len(logits) - 1)
    return torch.minimum(token, last)[0]


def _cut(logits: torch.Tensor, parameters: GenerationParameters) -> torch.Tensor:
    """The logits with -inf for the tokens that top_k, and then top_p among what is left, cut off.

    As in transformers: top_p keeps the fewest most probable tokens that together reach it.
    """
    top_k = parameters.top_k
    if 0 < top_k < len(logits):
        lowest = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < lowest, -math.inf)
    if parameters.top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        cut = torch.empty_like(order, dtype=torch.bool).scatter(0, order, before >= parameters.top_p)
        logits = logits.masked_fill(cut, -math.inf)
    return logits
