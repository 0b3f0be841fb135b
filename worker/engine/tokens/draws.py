"""Draws tokens from the logits of many rows at once, each by its own parameters and its own random number.

A row's token depends on that row alone: sums run over it in a fixed order and in float64, so the last bits of the
logits, which vary with the batch, move only the borders between tokens, and by no more than themselves.
"""

from collections import defaultdict
from collections.abc import Sequence as Rows
from enum import Enum, auto

import numpy as np
import torch

from worker.engine.tokens.sampling import Sampling

FEW = 256
"""How many of a row's most probable tokens are looked at first. On a CPU the 256 largest of 49,152 logits are found
in 0.2 ms, the order of all in 1 ms without and 3 ms with their places (Zen 4, one core)."""
CPU_ROWS = 4
"""Rows worked on together on a CPU: float64 of a large vocabulary then stays in its caches. Sixteen at once take 1.6
times as long."""


class _Way(Enum):
    """How a row's token is found."""

    WITHOUT_ORDER = auto()
    """Neither top_k nor top_p cuts anything off."""
    FROM_FEW = auto()
    """top_k leaves few tokens."""
    FROM_FEW_IF_ENOUGH = auto()
    """Most often few tokens reach top_p; otherwise all are looked at."""
    FROM_ALL = auto()


def draw(logits: torch.Tensor, samplings: Rows[Sampling]) -> torch.Tensor:
    """[rows], int64: one token drawn for each row of `logits` ([rows, vocabulary], float32).

    As in transformers, temperature comes first, then top_k, then top_p among what is left, then min_p. Of tokens
    with equal logits, top_k and top_p keep no more than they must. On a GPU nothing here waits for the device.
    """
    device, vocabulary = logits.device, logits.shape[1]
    settings = torch.tensor([_settings(sampling, vocabulary) for sampling in samplings], dtype=torch.float64)
    settings = settings.to(device, non_blocking=True)
    is_cpu = device.type == "cpu"
    groups: defaultdict[_Way, list[int]] = defaultdict(list)
    for row, sampling in enumerate(samplings):
        groups[_way(sampling, vocabulary, is_cpu=is_cpu)].append(row)
    tokens = torch.empty(len(samplings), dtype=torch.int64, device=device)
    for way, rows in groups.items():
        portion = CPU_ROWS if is_cpu else len(rows)
        for first in range(0, len(rows), portion):
            picked = torch.tensor(rows[first : first + portion]).to(device, non_blocking=True)
            tokens[picked] = _draw_in_one_way(logits[picked], settings[picked], way)
    return tokens


def _way(sampling: Sampling, vocabulary: int, *, is_cpu: bool) -> _Way:
    parameters = sampling.parameters
    if 0 < parameters.top_k < vocabulary:
        return _Way.FROM_FEW if parameters.top_k <= FEW else _Way.FROM_ALL
    if parameters.top_p == 1.0:
        return _Way.WITHOUT_ORDER
    # To see whether few are enough would mean to wait for the GPU, whose sort is fast.
    return _Way.FROM_FEW_IF_ENOUGH if is_cpu and vocabulary > FEW else _Way.FROM_ALL


def _settings(sampling: Sampling, vocabulary: int) -> tuple[float, float, float, float, float]:
    """A row of `settings`: temperature, top_k (the vocabulary for all), top_p, min_p and the next random number."""
    parameters = sampling.parameters
    return (
        parameters.temperature,
        min(parameters.top_k or vocabulary, vocabulary),
        parameters.top_p,
        parameters.min_p,
        sampling.draw(),
    )


def _draw_in_one_way(logits: torch.Tensor, settings: torch.Tensor, way: _Way) -> torch.Tensor:
    """[rows]: a token each."""
    if way is _Way.FROM_ALL:
        return _draw_from_all(logits, settings)
    if way is _Way.FROM_FEW:
        return _draw_from_few(logits, settings, total=None)[0]
    temperature, _, _, min_p, uniform = settings[:, :, None].unbind(1)
    weights = _weights(logits, logits.amax(dim=-1, keepdim=True), temperature)
    if way is _Way.WITHOUT_ORDER:
        return _invert(weights.masked_fill_(weights < min_p, 0.0), uniform)
    drawn, were_enough = _draw_from_few(logits, settings, total=weights.sum(dim=-1, keepdim=True))
    if not were_enough.all():
        others = ~were_enough
        drawn[others] = _draw_from_all(logits[others], settings[others])
    return drawn


def _draw_from_few(
    logits: torch.Tensor, settings: torch.Tensor, total: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token of each row from its `FEW` largest logits, and whether these are enough to reach top_p: [rows] each.

    `total`, [rows, 1], is the weight of all tokens of a row; None where top_k leaves no more than the few.
    """
    temperature, top_k, top_p, min_p, uniform = settings[:, :, None].unbind(1)
    values, tokens = logits.topk(min(FEW, logits.shape[1]), dim=-1)
    weights = _weights(values, values[:, :1], temperature)
    weights.masked_fill_(torch.arange(values.shape[1], device=logits.device) >= top_k, 0.0)
    reached = weights.cumsum(dim=-1)
    asked = top_p * (reached[:, -1:] if total is None else total)
    # As top_p keeps the fewest tokens that together reach it, one stays if those before it do not.
    weights.masked_fill_((reached - weights >= asked) | (weights < min_p), 0.0)
    tokens, order = tokens.sort(dim=-1)
    place = _invert(weights.gather(1, order), uniform)
    return tokens.gather(1, place[:, None])[:, 0], (reached[:, -1:] >= asked)[:, 0]


def _draw_from_all(logits: torch.Tensor, settings: torch.Tensor) -> torch.Tensor:
    """A token of each row, [rows], from as many of its tokens as top_k and top_p leave."""
    temperature, top_k, top_p, min_p, uniform = settings[:, :, None].unbind(1)
    ordered = _descending(logits)
    weights = _weights(ordered, ordered[:, :1], temperature)
    reached = weights.cumsum(dim=-1)
    asked = top_p * reached.gather(1, top_k.long() - 1)
    kept = (reached - weights < asked).sum(dim=-1, keepdim=True).minimum(top_k.long())
    # The least of the kept logits parts the kept from the others, but for its equals: of these the first are kept.
    least = ordered.gather(1, (kept - 1).clamp(min=0))
    above, equal = logits > least, logits == least
    stays = above | (equal & (equal.cumsum(dim=-1) <= kept - above.sum(dim=-1, keepdim=True)))
    weights = _weights(logits, ordered[:, :1], temperature)
    return _invert(weights.masked_fill_(~stays | (weights < min_p), 0.0), uniform)


def _descending(logits: torch.Tensor) -> torch.Tensor:
    """Each row's values, the largest first."""
    if logits.device.type == "cpu":
        # Three times as fast as torch, which sorts places along with values; it has no other sort.
        return torch.from_numpy(-np.sort(-logits.numpy(), axis=-1))
    return logits.sort(dim=-1, descending=True).values


def _weights(logits: torch.Tensor, largest: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Probabilities but for a row's common factor, so that the most probable token has 1; float64.

    The largest logit becomes 0 before the division, so that no temperature above 0 can overflow.
    """
    return logits.double().sub_(largest).div_(temperature).exp_()


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """[rows]: the first place of each row at which the summed weight passes the random number's share of all.

    `weights` [rows, places] stand in the order of the vocabulary: near ties of two tokens' probabilities then do not
    change which numbers draw which token.
    """
    reached = weights.cumsum(dim=-1)
    place = torch.searchsorted(reached, reached[:, -1:] * uniform, right=True)
    # Rounding may put the number at the very end; meant is then the last place that adds any weight.
    last = torch.searchsorted(reached, reached[:, -1:].contiguous()).clamp(max=weights.shape[1] - 1)
    return torch.minimum(place, last)[:, 0]
