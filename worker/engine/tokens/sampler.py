"""Chooses each sequence's next token from the step's logits."""

import math
from array import array
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from worker.engine.kernels.choice import Largest
from worker.engine.tokens.draws import draw
from worker.engine.tokens.sampling import Sampling

ROWS_AT_ONCE = 64
"""Rows of a prompt whose logits are in float32 at the same time: 32 MB of them, for 128,000 tokens."""


@dataclass(frozen=True)
class Chosen:
    """One row's next token. Log-probabilities are natural, and the model's own: before biases, penalties and cuts."""

    token: int
    logprob: float
    """NaN for logits with NaN."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens, each with its log-probability, most probable first; as many as were asked for."""


def largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's argmax and logsumexp by torch's operations; on a CPU, a kernel may do it."""
    logits = logits.float()
    return logits.argmax(dim=-1), logits.logsumexp(dim=-1)


def choose(logits: torch.Tensor, samplings: Rows[Sampling], largest: Largest = largest) -> list[Chosen]:
    """The next token of each row of `logits` ([rows, vocabulary]), by that row's own sampling.

    In transformers' order: biases and penalties, then what may not follow (by a constraint, and by min_new_tokens),
    then temperature and cuts. The caller tells each sampling what was chosen (`Sampling.accept`).
    """
    tokens, totals = largest(logits)
    rows = [row for row, sampling in enumerate(samplings) if not sampling.takes_the_largest]
    if rows:
        picked = torch.tensor(rows).to(logits.device, non_blocking=True)
        tokens[picked] = _choose_otherwise(logits[picked].float(), [samplings[row] for row in rows])
    logprobs = logits.gather(1, tokens[:, None])[:, 0].float() - totals
    # One copy to the host for both; float64 holds every token and every float32.
    found = torch.stack((tokens.double(), logprobs.double())).tolist()
    top = _top(logits, totals, [sampling.parameters.top_logprobs for sampling in samplings])
    return [
        Chosen(int(token), logprob, alternatives) for token, logprob, alternatives in zip(*found, top, strict=True)
    ]


def told_logprobs(logits: torch.Tensor, tokens: Rows[int], alternatives: int) -> list[Chosen]:
    """What the model says of tokens that are given: one for each row of `logits` ([rows, vocabulary])."""
    told: list[Chosen] = []
    for first in range(0, len(tokens), ROWS_AT_ONCE):
        rows = logits[first : first + ROWS_AT_ONCE].float()
        given = tokens[first : first + ROWS_AT_ONCE]
        totals = rows.logsumexp(dim=-1)
        picked = torch.tensor(given).to(logits.device, non_blocking=True)
        logprobs = (rows.gather(1, picked[:, None])[:, 0] - totals).tolist()
        top = _top(rows, totals, [alternatives] * len(given))
        told += [Chosen(*place) for place in zip(given, logprobs, top, strict=True)]
    return told


def processed(logits: torch.Tensor, samplings: Rows[Sampling]) -> torch.Tensor:
    """The logits that rows choose from: with biases and penalties, and -inf for what may not follow.

    `logits`, [rows, vocabulary] in float32, is used up: the result may or may not be the same tensor.
    """
    _adjust(logits, samplings)
    for row, sampling in enumerate(samplings):
        if sampling.constraint is not None:
            sampling.constraint.mask(logits[row])
    return _forbid_ends(logits, samplings)


def _choose_otherwise(logits: torch.Tensor, samplings: Rows[Sampling]) -> torch.Tensor:
    """[rows]: the tokens of rows whose choice is not simply the model's largest logit; `logits` is used up."""
    logits = processed(logits, samplings)
    drawing = [row for row, sampling in enumerate(samplings) if not sampling.is_greedy]
    if len(drawing) == len(samplings):
        return draw(logits, samplings)
    tokens = logits.argmax(dim=-1)
    if drawing:
        picked = torch.tensor(drawing).to(logits.device, non_blocking=True)
        tokens[picked] = draw(logits[picked], [samplings[row] for row in drawing])
    return tokens


def _adjust(logits: torch.Tensor, samplings: Rows[Sampling]) -> None:
    """Apply all rows' biases and penalties in place: one gather and one scatter, however many rows and tokens."""
    found = [(row, each) for row, sampling in enumerate(samplings) if (each := sampling.adjustments) and each.tokens]
    if not found:
        return
    vocabulary = logits.shape[1]
    places = torch.cat([_tensor(each.tokens, torch.int64) + row * vocabulary for row, each in found])
    columns = torch.stack(
        [
            torch.cat([_tensor(column, torch.float32) for column in named])
            for named in zip(*((each.bias, each.factor, each.penalty) for _, each in found), strict=True)
        ]
    )
    places = places.to(logits.device, non_blocking=True)
    bias, factor, penalty = columns.to(logits.device, non_blocking=True)
    flat = logits.view(-1)
    values = flat[places] + bias
    flat[places] = torch.where(values < 0, values * factor, values / factor) - penalty


def _forbid_ends(logits: torch.Tensor, samplings: Rows[Sampling]) -> torch.Tensor:
    """The logits with -inf for tokens that would end a row before its `min_new_tokens`.

    A row keeps them where nothing else is left, as a constraint may have it.
    """
    vocabulary = logits.shape[1]
    places = [row * vocabulary + token for row, sampling in enumerate(samplings) for token in sampling.forbidden]
    if not places:
        return logits
    forbidden = logits.clone()
    forbidden.view(-1)[torch.tensor(places).to(logits.device, non_blocking=True)] = -math.inf
    has_others = (forbidden > -math.inf).any(dim=-1, keepdim=True)
    return torch.where(has_others, forbidden, logits)


def _top(logits: torch.Tensor, totals: torch.Tensor, asked: Rows[int]) -> list[tuple[tuple[int, float], ...]]:
    """Each row's most probable tokens, as many as are asked for it."""
    most = max(asked, default=0)
    if most == 0:
        return [()] * len(asked)
    values, tokens = logits.float().topk(min(most, logits.shape[1]), dim=-1)
    pairs = zip(tokens.tolist(), (values - totals[:, None]).tolist(), strict=True)
    return [
        tuple(zip(ids[:count], logprobs[:count], strict=True))
        for count, (ids, logprobs) in zip(asked, pairs, strict=True)
    ]


def _tensor(column: "array[int] | array[float]", dtype: torch.dtype) -> torch.Tensor:
    """The column's memory as a tensor: valid only until the column grows, so it must be copied before that."""
    return torch.frombuffer(column, dtype=dtype)
