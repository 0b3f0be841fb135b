"""Encodes images and sounds that a model gives into files that every program reads."""

import io
import wave
from typing import Any

import numpy as np
from PIL import Image

PNG = "image/png"
"""Media type of what `png` gives."""

WAV = "audio/wav"
"""Media type of what `wav` gives."""

# Full scale of 16-bit samples: as decoders divide by it, what was decoded from 16 bits encodes to the same bits.
_FULL_SCALE = 32768


def png(image: Image.Image) -> bytes:
    """The image as PNG, its mode and pixels kept (L, I;16, RGB, RGBA ...).

    Raises ValueError for a mode that PNG does not have, such as F.
    """
    file = io.BytesIO()
    try:
        image.save(file, format="PNG")
    except OSError as error:
        raise ValueError(f"PNG holds no image of mode {image.mode}") from error
    return file.getvalue()


def wav(samples: "np.ndarray[Any, np.dtype[np.floating[Any]]]", sampling_rate: int) -> bytes:
    """Samples [samples] or [channels, samples], full scale at 1.0, at `sampling_rate` (1/s) as 16-bit PCM.

    What lies beyond full scale is clipped. Raises ValueError for another shape and for values that are not finite.
    """
    channels = np.atleast_2d(samples)
    if channels.ndim != 2:
        raise ValueError(f"a sound is [samples] or [channels, samples], not {list(samples.shape)}")
    if not np.isfinite(channels).all():
        raise ValueError("the sound has samples that are not finite numbers")
    scaled = np.rint(channels.astype(np.float32) * _FULL_SCALE).clip(-_FULL_SCALE, _FULL_SCALE - 1)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels.shape[0])
        writer.setsampwidth(2)
        writer.setframerate(sampling_rate)
        writer.writeframes(scaled.T.astype("<i2").tobytes())
    return file.getvalue()
