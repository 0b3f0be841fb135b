"""Samplings for tests: with a number to draw by that the test knows, and a constraint of a few tokens."""

import math
from collections.abc import Iterable

import torch

from tandem.specs import GenerationParameters
from worker.engine.tokens.sampling import Constraint, Sampling


class KnownDraw(Sampling):
    """Draws by one known number."""

    uniform = 0.5

    def draw(self) -> float:
        return self.uniform


class OnlyThese:
    """A constraint that allows one set of tokens after another, and then nothing."""

    def __init__(self, *allowed: set[int]) -> None:
        self._allowed = list(allowed)

    def mask(self, logits: torch.Tensor) -> None:
        kept = sorted(self._allowed[0])
        values = logits[kept]
        logits.fill_(-math.inf)
        logits[kept] = values

    def accept(self, token: int) -> None:
        assert token in self._allowed.pop(0)

    @property
    def is_finished(self) -> bool:
        return not self._allowed


def sampling(
    *,
    prompt: Iterable[int] = (),
    generated: Iterable[int] = (),
    uniform: float | None = None,
    vocabulary: int = 2**31,
    end_tokens: Iterable[int] = (),
    constraint: Constraint | None = None,
    **parameters,
) -> Sampling:
    """A sampling that has chosen `generated` already; it draws by `uniform` if given, otherwise by its seed."""
    made = (Sampling if uniform is None else KnownDraw)(
        GenerationParameters(**parameters),
        prompt,
        vocabulary=vocabulary,
        end_tokens=frozenset(end_tokens),
        constraint=constraint,
    )
    if isinstance(made, KnownDraw) and uniform is not None:
        made.uniform = uniform
    for token in generated:
        made.accept(token)
    return made
