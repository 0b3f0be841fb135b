"""Choosing tokens on a CUDA device: the tokens of the CPU, with one wait for the device a step."""

from collections.abc import Iterator

import pytest
import torch

from tests.unit.engine.samplings import sampling
from worker.engine.tokens.draws import draw
from worker.engine.tokens.sampler import choose, processed
from worker.engine.tokens.sampling import Sampling

pytestmark = pytest.mark.gpu

ROWS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 40},
    {"temperature": 1.5, "top_k": 3000, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.95},
    {"repetition_penalty": 1.2},
    {"temperature": 1.0, "presence_penalty": 0.5, "logit_bias": {3: 2.0}, "min_new_tokens": 9},
]


def rows() -> list[Sampling]:
    return [
        sampling(prompt=range(50), generated=[3, 3, 60], end_tokens={7}, seed=seed, **parameters)
        for seed, parameters in enumerate(ROWS)
    ]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(len(ROWS), 49_152, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_the_same_seed_draws_the_same_tokens_as_on_the_cpu(logits: torch.Tensor) -> None:
    here = [chosen.token for chosen in choose(logits, rows())]

    assert [chosen.token for chosen in choose(logits.cuda(), rows())] == here


@pytest.mark.usefixtures("no_waiting")
def test_neither_penalties_nor_draws_wait_for_the_device() -> None:
    logits = torch.randn(len(ROWS), 49_152, device="cuda")
    drawn = draw(processed(logits, rows())[1:6], rows()[1:6])

    assert drawn.shape == (5,)
