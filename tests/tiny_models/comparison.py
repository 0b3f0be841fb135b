"""Are two answers of a pipeline the same? Numbers within a margin, pictures within one level, all else exactly."""

from typing import Any

import numpy as np
from PIL import Image

MARGIN = 1e-4
"""How far two float32 results of the same sums in another order may be apart, on answers of the size of 1 to 10."""


def difference(left: Any, right: Any, *, margin: float = MARGIN, where: str = "answer") -> str | None:
    """The first place where the answers differ, as a sentence, or None if they are the same.

    Looks into dicts, lists and tuples; a tensor or an array is compared by shape and values, a picture by size and
    pixels (one level of 255 apart is equal: depth maps are rounded from floats).
    """
    if isinstance(left, dict) and isinstance(right, dict):
        if left.keys() != right.keys():
            return f"{where} has keys {sorted(left)} and {sorted(right)}"
        pairs = [(f"{where}[{key!r}]", left[key], right[key]) for key in left]
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) != len(right):
            return f"{where} has {len(left)} and {len(right)} items"
        pairs = [(f"{where}[{index}]", *pair) for index, pair in enumerate(zip(left, right, strict=True))]
    else:
        return _leaf_difference(left, right, margin, where)
    return next((found for place, *pair in pairs if (found := difference(*pair, margin=margin, where=place))), None)


def _leaf_difference(left: Any, right: Any, margin: float, where: str) -> str | None:
    if isinstance(left, Image.Image) and isinstance(right, Image.Image):
        # One shade, whatever the shade is.
        return _array_difference(np.asarray(left, int), np.asarray(right, int), 1, where, relative=0)
    if hasattr(left, "shape") or hasattr(right, "shape") or isinstance(left, float):
        return _array_difference(np.asarray(left, float), np.asarray(right, float), margin, where)
    return None if left == right else f"{where} is {left!r} and {right!r}"


def _array_difference(
    left: Any, right: Any, margin: float, where: str, *, relative: float | None = None
) -> str | None:
    if left.shape != right.shape:
        return f"{where} has shapes {left.shape} and {right.shape}"
    if np.allclose(left, right, rtol=margin if relative is None else relative, atol=margin):
        return None
    return f"{where} differs by up to {np.max(np.abs(left - right)):.3g}"
