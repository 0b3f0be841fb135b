"""What one sequence adds to or takes from single tokens' logits: biases and penalties, kept up with each token."""

from array import array
from collections.abc import Iterable

from tandem.specs import GenerationParameters


class Adjustments:
    """The tokens whose logits change, and by how much, as columns that torch reads without a loop.

    A token's logit becomes, in this order: plus its `bias`; divided by `factor` if it is positive and multiplied if
    it is negative (the repetition penalty, Keskar et al. 2019, over prompt and generated tokens); minus `penalty`
    (OpenAI's presence and frequency penalties, over generated tokens).
    """

    def __init__(self, parameters: GenerationParameters, prompt_tokens: Iterable[int]) -> None:
        self._repetition = parameters.repetition_penalty
        self._presence = parameters.presence_penalty
        self._frequency = parameters.frequency_penalty
        self.tokens = array("q")
        self.bias = array("f")
        self.factor = array("f")
        self.penalty = array("f")
        self._places: dict[int, int] = {}
        """Where each token stands in the columns."""
        self._counts: dict[int, int] = {}
        """How often each token was generated."""
        for token, bias in parameters.logit_bias.items():
            self.bias[self._place(token)] = bias
        if self._repetition != 1.0:
            for token in dict.fromkeys(prompt_tokens):
                self.factor[self._place(token)] = self._repetition

    def accept(self, token: int) -> None:
        """Note a generated token."""
        if self._repetition == 1.0 and self._presence == 0.0 and self._frequency == 0.0:
            return
        count = self._counts[token] = self._counts.get(token, 0) + 1
        place = self._place(token)
        self.factor[place] = self._repetition
        self.penalty[place] = self._frequency * count + self._presence

    def _place(self, token: int) -> int:
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self.tokens)
            self.tokens.append(token)
            self.bias.append(0.0)
            self.factor.append(1.0)
            self.penalty.append(0.0)
        return place
