"""OpenAI's `system_fingerprint`: while it is the same, a seed repeats its text."""

import hashlib
from functools import lru_cache

from tandem import __version__

MODELS_REMEMBERED = 1024
LETTERS = 12


@lru_cache(maxsize=MODELS_REMEMBERED)
def system_fingerprint(model: str) -> str:
    """Of this version of Tandem and a model; an adapter is immutable, and its id is its model's name."""
    return f"fp_{hashlib.sha256(f'{__version__}/{model}'.encode()).hexdigest()[:LETTERS]}"
