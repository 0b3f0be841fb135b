"""A text that is being written outside the engine, token by token, by the engine's rules."""

import math
from collections.abc import Sequence

from tandem.errors import TandemError
from tandem.specs import GenerationParameters
from worker.engine.sequence import FinishReason
from worker.engine.text.detokenizer import Detokenizer, Tokenizer
from worker.engine.text.stop_strings import StopStrings
from worker.engine.text.text_output import TextOutput
from worker.engine.tokens.sampler import Chosen
from worker.engine.tokens.sampling import Sampling


class WrittenText:
    """One row's tokens and text, and why it ended."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], parameters: GenerationParameters, sampling: Sampling
    ) -> None:
        self.sampling = sampling
        self.chosen: list[Chosen] = []
        self.finish_reason: FinishReason | None = None
        """None while it goes on."""
        self._max_tokens = parameters.max_new_tokens
        self._output = TextOutput(
            Detokenizer(tokenizer, prompt),
            StopStrings(parameters.stop),
            on_text=None,
            min_tokens=parameters.min_new_tokens,
        )

    @property
    def text(self) -> str:
        """The decided text, without special tokens and the stop string."""
        return self._output.text

    def add(self, chosen: Chosen) -> None:
        """Add a token. Raises TandemError if the model's output was not finite."""
        if not math.isfinite(chosen.logprob):
            raise TandemError("the model's output is not finite: its weights are at fault")
        self.chosen.append(chosen)
        self.sampling.accept(chosen.token)
        if self.sampling.is_end(chosen.token):
            self._output.flush()
            self.finish_reason = "stop"
        elif self._output.push(chosen.token):
            self.finish_reason = "stop"
        elif len(self.chosen) == self._max_tokens:
            self.finish_reason = "stop" if self._output.flush() else "length"
