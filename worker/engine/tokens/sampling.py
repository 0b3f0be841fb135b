"""How one sequence's tokens are chosen, and which of them end it: the state of its choices, in plain Python."""

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from tandem.errors import InvalidRequest
from tandem.specs import GenerationParameters
from worker.engine.tokens.adjustments import Adjustments

if TYPE_CHECKING:  # what decides imports no torch
    from torch import Tensor


class Constraint(Protocol):
    """What a sequence's text must look like, such as a grammar; each sequence has one of its own."""

    def mask(self, logits: "Tensor") -> None:
        """Set to -inf, in place, what may not follow; `logits` is [vocabulary] on the model's device."""

    def accept(self, token: int) -> None:
        """Note the token that was chosen."""

    @property
    def is_finished(self) -> bool:
        """Whether only an end token may follow, so that the sequence may stop."""


class Sampling:
    """One sequence's choices. `choose` reads it in each step that gives the sequence a token.

    It holds all that its choices depend on besides the logits, its random stream included: same seed, same text,
    whatever else is in the batch.
    """

    def __init__(
        self,
        parameters: GenerationParameters,
        prompt_tokens: Iterable[int],
        *,
        vocabulary: int,
        end_tokens: frozenset[int],
        constraint: Constraint | None = None,
    ) -> None:
        """`vocabulary` is the number of logits; `end_tokens` are those that end a text of this model.

        Raises InvalidRequest for a token of `logit_bias` or `stop_token_ids` that the model does not have.
        """
        _require_known("logit_bias", parameters.logit_bias, vocabulary)
        _require_known("stop_token_ids", parameters.stop_token_ids, vocabulary)
        self.parameters = parameters
        self.constraint = constraint
        self.adjustments = Adjustments(parameters, prompt_tokens) if _adjusts(parameters) else None
        self._ends = frozenset(parameters.stop_token_ids) | (frozenset() if parameters.ignore_eos else end_tokens)
        self._generated = 0
        # A seed makes the draws repeatable; without one, Python seeds from the operating system.
        self._draws = random.Random(parameters.seed)  # noqa: S311 - sampling of text, not a secret

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable of the tokens that may follow is chosen, and none is drawn."""
        return self.parameters.temperature == 0.0

    @property
    def takes_the_largest(self) -> bool:
        """Whether the next token is simply that of the model's largest logit."""
        return self.is_greedy and self.adjustments is None and self.constraint is None and not self.forbidden

    @property
    def forbidden(self) -> frozenset[int]:
        """The tokens that would end it before `min_new_tokens`, while that is so."""
        return self._ends if self._generated < self.parameters.min_new_tokens else frozenset()

    @property
    def is_complete(self) -> bool:
        """Whether its constraint allows nothing more, so that it ends without an end token."""
        return self.constraint is not None and self.constraint.is_finished

    def draw(self) -> float:
        """The next number in [0, 1) of its own random stream; one for each token that is drawn."""
        return self._draws.random()

    def accept(self, token: int) -> None:
        """Note the token that was chosen; call it once for each."""
        self._generated += 1
        if self.adjustments is not None:
            self.adjustments.accept(token)
        if self.constraint is not None:
            self.constraint.accept(token)

    def is_end(self, token: int) -> bool:
        """Whether the token ends the text: one of `stop_token_ids`, or (not with `ignore_eos`) the model's own."""
        return token in self._ends


def _adjusts(parameters: GenerationParameters) -> bool:
    """Whether any token's logit is changed."""
    neutral = (parameters.repetition_penalty, parameters.presence_penalty, parameters.frequency_penalty)
    return bool(parameters.logit_bias) or neutral != (1.0, 0.0, 0.0)


def _require_known(field: str, tokens: Iterable[int], vocabulary: int) -> None:
    unknown = [token for token in tokens if token >= vocabulary]
    if unknown:
        raise InvalidRequest(
            f"`{field}` names token {unknown[0]}; the model's tokens are 0 to {vocabulary - 1}",
            param=f"parameters.{field}",
        )
