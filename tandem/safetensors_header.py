"""What a safetensors file holds, read from its header alone: no torch, no tensor in memory, and never a pickle.

The format (documented in the safetensors project's README): 8 bytes with the header's length, little-endian; the
header, a JSON object of name → {dtype, shape, data_offsets}; then the data without gaps. `__metadata__` names no
tensor.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 * 2**20
"""The format allows 100 MB; a model of 5,000 tensors has 0.6 MB."""
MAX_DIMENSIONS = 8
"""No weight of a model has more than five (a convolution over video)."""
MAX_QUOTED = 200
"""Characters of a name that a message repeats."""
METADATA = "__metadata__"
NUMBER_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
"""Bits of one number, by the format's name for its type (safetensors 0.8)."""


class NotSafetensors(ValueError):
    """The file is not what the format says; the message names the first fault."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    dtype: str
    """A key of NUMBER_BITS."""
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file by their names. Raises NotSafetensors; OSError if it cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(_exactly(file, LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise NotSafetensors(f"its header would have {length} bytes; the limit is {MAX_HEADER_BYTES}")
        header = _json_object(_exactly(file, length))
    tensors: dict[str, TensorInfo] = {}
    places: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name != METADATA:
            tensors[name], place = _tensor(name, entry)
            places.append(place)
    _check_no_gaps(places, size - LENGTH_BYTES - length)
    return tensors


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise NotSafetensors("it ends within its header")
    return content


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise NotSafetensors(f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise NotSafetensors("its header is not a JSON object")
    return header


def _tensor(name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """A header's entry, and where its data begin and end."""
    # The messages repeat no more of a stranger's file than a line holds.
    called = repr(name[:MAX_QUOTED])
    if not isinstance(entry, dict):
        raise NotSafetensors(f"{called} is described by no JSON object")
    dtype, shape, offsets = (entry.get(field) for field in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in NUMBER_BITS:
        raise NotSafetensors(f"the dtype of {called} is none of {', '.join(NUMBER_BITS)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise NotSafetensors(f"the shape of {called} must be up to {MAX_DIMENSIONS} whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise NotSafetensors(f"the data_offsets of {called} must be two whole numbers")
    if 8 * (offsets[1] - offsets[0]) != math.prod(shape) * NUMBER_BITS[dtype]:
        raise NotSafetensors(f"the data_offsets of {called} do not fit its dtype and shape")
    return TensorInfo(dtype, tuple(shape)), (offsets[0], offsets[1])


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _check_no_gaps(places: list[tuple[int, int]], data_bytes: int) -> None:
    """Raise NotSafetensors unless the tensors lie one after another and fill the data."""
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise NotSafetensors(f"its tensors overlap or leave a gap at byte {min(start, end)} of the data")
        end = stop
    if end != data_bytes:
        raise NotSafetensors(f"its tensors have {end} bytes, and {data_bytes} follow the header")
