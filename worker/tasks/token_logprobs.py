"""Tokens with their log-probabilities as a result tells them: in the form of OpenAI's `logprobs.content`."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from tokenizers import decoders
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from worker.engine.tokens.sampler import Chosen

LEAST_LOGPROB = -9999.0
"""Told of a token that the model never chooses (OpenAI's value): JSON has no infinity."""
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""SentencePiece's token for one byte of a character that has no token."""
WORD_START = "▁"
"""SentencePiece's mark in place of a space (U+2581)."""


class TokenLogprobs:
    """Tells the tokens of one job's texts; what it has told of a token once it keeps."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._described: dict[int, tuple[str, list[int]]] = {}
        self._tokenizer = tokenizer

    def told(self, places: Iterable[Chosen]) -> list[dict[str, Any]]:
        """For each place of a text: `token`, `id`, `logprob`, `bytes`, and `top_logprobs` with the same of others.

        `bytes` are the token's own, since a character may span several tokens; `token` is what they are as text, with
        replacement characters for what is no whole one.
        """
        return [
            {
                **self._one(chosen.token, chosen.logprob),
                "top_logprobs": [self._one(token, logprob) for token, logprob in chosen.top],
            }
            for chosen in places
        ]

    def of_prompt(self, tokens: Sequence[int], places: Iterable[Chosen]) -> list[dict[str, Any]]:
        """The same of a prompt's tokens. The first follows nothing: it has no log-probability and no place."""
        first = {**self.told([Chosen(tokens[0], 0.0)])[0], "logprob": None}
        return [first, *self.told(places)]

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        described = self._described.get(token)
        if described is None:
            own = token_bytes(self._tokenizer, token)
            described = self._described[token] = (own.decode(errors="replace"), list(own))
        text, own_bytes = described
        return {"token": text, "id": token, "logprob": max(logprob, LEAST_LOGPROB), "bytes": own_bytes}


def token_logprobs(tokenizer: PreTrainedTokenizerBase, places: Iterable[Chosen]) -> list[dict[str, Any]]:
    """What TokenLogprobs tells of one text."""
    return TokenLogprobs(tokenizer).told(places)


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """What a token adds to a text, in UTF-8; nothing for an id that has no token (padded embeddings).

    A special token is told by its name.
    """
    piece = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(piece, str):
        return b""
    if token in tokenizer.added_tokens_decoder:
        return piece.encode()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and isinstance(backend.decoder, decoders.ByteLevel):
        return bytes(_byte_of_letter()[letter] for letter in piece)
    if (byte := BYTE_TOKEN.fullmatch(piece)) is not None:
        return bytes([int(byte[1], 16)])
    text = piece.replace(WORD_START, " ") if WORD_START in piece else tokenizer.decode([token])
    assert isinstance(text, str), "a list of texts comes of a list of lists only"
    return text.encode()


@cache
def _byte_of_letter() -> dict[str, int]:
    """The byte that each letter of a byte-level tokenizer's vocabulary stands for (Radford et al. 2019)."""
    return {letter: byte for byte, letter in bytes_to_unicode().items()}
