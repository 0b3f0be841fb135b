"""Draws tokens in a `generate()` by random numbers of each row's own.

The library draws all rows from the process's one generator: a row's company, and whatever else the process draws,
would change what comes out for a seed.
"""

from collections.abc import Sequence

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def drawing(*, temperature: float, top_k: int, top_p: float, seeds: Sequence[int | None]) -> LogitsProcessorList:
    """Makes a greedy `generate()` draw by `temperature` among the likeliest tokens; one seed a row, None for any.

    `top_k` 0 and `top_p` 1 keep all tokens.
    """
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(temperature)]
    if top_k > 0:
        steps.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    return LogitsProcessorList([*steps, _GumbelNoise(seeds)])


class _GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise to the logits: the largest sum is a draw by their softmax (the Gumbel-max trick)."""

    def __init__(self, seeds: Sequence[int | None]) -> None:
        # On the CPU, so that a seed means the same on every device.
        self._generators = [torch.Generator() for _ in seeds]
        for generator, seed in zip(self._generators, seeds, strict=True):
            if seed is None:
                generator.seed()
            else:
                generator.manual_seed(seed)

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:  # noqa: ARG002
        noise = torch.stack([_gumbel(generator, scores.shape[-1]) for generator in self._generators])
        summed: FloatTensor = scores + noise.to(scores.device)  # type: ignore[assignment]  # a Tensor to torch's stubs
        return summed


def _gumbel(generator: torch.Generator, tokens: int) -> Tensor:
    """[tokens]; exponentials are never 0 in torch, so that all are finite."""
    return -torch.empty(tokens).exponential_(generator=generator).log()
