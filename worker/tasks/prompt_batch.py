"""Joins prompts with their images and sounds to one batch.

The library's own joining keeps only the first of several images or sounds of a prompt in some layouts, and refuses a
tokenizer and a feature extractor that pad on different sides.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch


def join_prompts(*, pad_token_id: int, side: str) -> Callable[[Sequence[dict[str, Any]]], dict[str, Any]]:
    """Tensors of equal shape are laid one after the other along their first side, [1, tokens, …] of unequal length
    are padded on `side`, and all else becomes a list."""

    def join(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {name: _join([item[name] for item in items], _filling(name)) for name in items[0]}

    def _filling(name: str) -> int:
        return pad_token_id if name in ("input_ids", "decoder_input_ids") else 0

    def _join(values: list[Any], filling: int) -> Any:
        if not isinstance(values[0], torch.Tensor):
            return values
        if all(value.shape == values[0].shape for value in values):
            return torch.cat(values)
        longest = max(value.shape[1] for value in values)
        joined = values[0].new_full((len(values), longest, *values[0].shape[2:]), filling)
        for row, value in zip(joined, values, strict=True):
            place = slice(longest - value.shape[1], None) if side == "left" else slice(value.shape[1])
            row[place] = value[0]
        return joined

    return join
