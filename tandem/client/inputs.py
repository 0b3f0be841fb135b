"""From what a program has in its hands to a spec's `inputs`: bytes, paths and images become media."""

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tandem.errors import InvalidRequest

INLINE_BYTES = 1024 * 1024
"""A larger image, sound or video is uploaded first: a JSON body has 8 MB by default, and base64 adds a third."""


def wire_inputs(value: Any, upload: Callable[[bytes], str]) -> Any:
    """`value` as JSON: bytes, the file of a `Path` and a Pillow image as base64, or uploaded where they are large.

    `upload` answers the file's id. Raises InvalidRequest for a path that cannot be read.
    """
    if isinstance(value, Mapping):
        return {name: wire_inputs(item, upload) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [wire_inputs(item, upload) for item in value]
    content = _content(value)
    if content is None:
        return value
    return upload(content) if len(content) > INLINE_BYTES else base64.b64encode(content).decode()


def _content(value: Any) -> bytes | None:
    """The bytes of an image, sound or video; None for anything that is JSON by itself."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Path):
        try:
            return value.read_bytes()
        except OSError as error:
            raise InvalidRequest(f"the file {value} cannot be read: {error.strerror}", param="inputs") from error
    if type(value).__module__.startswith("PIL."):
        # Pillow is not a dependency of producers: its images are known by their module.
        file = io.BytesIO()
        value.save(file, format="PNG")
        return file.getvalue()
    return None
