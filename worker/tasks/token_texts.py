"""Texts that are given as token ids."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from tandem.errors import InvalidRequest


def as_texts(values: Sequence[Any], tokenizer: PreTrainedTokenizerBase | None) -> list[Any]:
    """The values, with the text of each that is token ids; special tokens in them are left out.

    A model's task puts its own special tokens around every text. Raises InvalidRequest for an id that the tokenizer
    does not have: most often it is another model's.
    """
    return [
        _text(value, f"inputs[{place}]", tokenizer) if _is_tokens(value) else value
        for place, value in enumerate(values)
    ]


def _is_tokens(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], int)


def _text(tokens: tuple[int, ...], name: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    assert tokenizer is not None, "a task of texts has a tokenizer"
    unknown = next((token for token in tokens if token >= len(tokenizer)), None)
    if unknown is not None:
        raise InvalidRequest(
            f"{name} has token {unknown}; the model's tokens are 0 to {len(tokenizer) - 1}. Send the text, or tokens "
            "of the model's own tokenizer",
            param=name,
        )
    text = tokenizer.decode(list(tokens), skip_special_tokens=True)
    assert isinstance(text, str), "a list of texts comes of a list of lists only"
    return text
