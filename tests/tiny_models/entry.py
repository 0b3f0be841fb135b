"""What a tiny model is: how to make it, and the tasks that it serves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.tiny_models.weights import GAIN


class Parts(NamedTuple):
    """A model with weights yet to be drawn, and the tokenizer, processor or feature extractor saved beside it."""

    model: Any
    preprocessors: Sequence[Any]


def _as_drawn(_parts: Parts) -> None:
    """Leaves the weights as they were drawn."""


@dataclass(frozen=True)
class TinyModel:
    """One entry of `TINY_MODELS`."""

    tasks: tuple[str, ...]
    """Tasks of transformers, and of those that its version 5 dropped, that the folder serves."""

    make: Callable[[Path], Parts]
    """Makes the parts; the folder is for vocabularies that a tokenizer can only read from a file."""

    adjust: Callable[[Parts], None] = _as_drawn
    """Changes drawn weights where chance would give an empty answer (no object found, no word spoken)."""

    gain: float = GAIN


def labels(*names: str) -> dict[str, Any]:
    """A configuration's two label tables."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
