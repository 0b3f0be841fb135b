"""Turns tokens into text as they come, without ever showing half a character."""

from collections.abc import Iterable
from typing import Protocol

CONTEXT_TOKENS = 6
"""Prompt tokens that are decoded along with the first generated ones. Tokenizers of the SentencePiece kind drop
the space before a text's first word: with context before it, the space stays."""

REPLACEMENT = "\ufffd"
"""What decoders put for bytes that are not (yet) a character."""


class Tokenizer(Protocol):
    """The part of transformers' tokenizers that the engine uses."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str: ...


class Detokenizer:
    """Decodes one sequence's tokens. The pieces, joined, are the text of all tokens after the prompt."""

    def __init__(self, tokenizer: Tokenizer, prompt_tokens: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt_tokens)[-CONTEXT_TOKENS:]
        """The tokens decoded each time: some whose text was given out, as context, and those after them."""
        self._given = len(self._window)
        """How many of the window's tokens were given out as text."""
        self._given_text = self._decode(self._window)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character's bytes are still missing."""
        self._window.append(token)
        text = self._decode(self._window)
        if len(text) <= len(self._given_text) or text.endswith(REPLACEMENT):
            return ""
        return self._give(text)

    def flush(self) -> str:
        """The rest, with replacement characters for bytes that never became a character."""
        return self._give(self._decode(self._window))

    def _give(self, text: str) -> str:
        piece = text[len(self._given_text) :]
        # The tokens just given out become the context of the next ones; what was before them is not needed again.
        self._window = self._window[self._given :]
        self._given = len(self._window)
        self._given_text = self._decode(self._window)
        return piece

    def _decode(self, tokens: list[int]) -> str:
        # Cleaning up would join words and punctuation over the pieces' borders; models do not expect it.
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
