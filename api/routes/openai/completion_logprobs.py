"""The log-probabilities of OpenAI's completions: parallel lists, in contrast to its chats'."""

import codecs
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel


class CompletionLogprobs(BaseModel):
    """One entry a token in each list. A prompt's first token follows nothing, and has null as its value."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]
    """Where each token begins, in characters of the choice's text."""


class LogprobsWriter:
    """Turns one choice's tokens into the lists, piece by piece."""

    def __init__(self, alternatives: int) -> None:
        """`alternatives`: how many most probable tokens are told in each place; 0 tells none."""
        self._alternatives = alternatives
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def written(self, places: Sequence[dict[str, Any]]) -> CompletionLogprobs:
        """The lists of the next tokens, as a job's result tells them."""
        offsets = []
        for place in places:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(bytes(place["bytes"])))
        tops = [_alternatives(place) for place in places] if self._alternatives else None
        return CompletionLogprobs(
            tokens=[_token(place) for place in places],
            token_logprobs=[place["logprob"] for place in places],
            top_logprobs=tops,
            text_offset=offsets,
        )


def _alternatives(place: dict[str, Any]) -> dict[str, float] | None:
    """With the token itself, which OpenAI tells besides if it is none of them."""
    if place["logprob"] is None:
        return None
    return {_token(other): other["logprob"] for other in (*place["top_logprobs"], place)}


def _token(place: dict[str, Any]) -> str:
    """A token's text; where it is a part of a character, its bytes, as OpenAI writes them."""
    try:
        return bytes(place["bytes"]).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in place["bytes"])
