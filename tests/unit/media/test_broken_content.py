"""Whatever bytes come in: a result, or InvalidRequest that names the field. Nothing else gets out."""

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tandem.errors import InvalidRequest
from tests.unit.media.files import gray_steps, sound, tone, video
from worker.media.audio import read_audio
from worker.media.image import read_image
from worker.media.limits import MediaLimits
from worker.media.video import read_video, read_video_frames

# Small, so that what a corrupted header claims does not slow the test down.
LIMITS = MediaLimits(image_pixels=1_000_000, audio_seconds=60, video_seconds=60, video_pixels=1_000_000)

RATE = 16_000

Result = TypeVar("Result")


def _image(kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


IMAGES = [_image(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")]
SOUNDS = [
    sound(tone(0.2, RATE), RATE, container=container, codec=codec)
    for container, codec in [
        ("wav", "pcm_s16le"),
        ("wav", "pcm_f32le"),
        ("flac", "flac"),
        ("mp3", "libmp3lame"),
        ("ogg", "libopus"),
        ("ipod", "aac"),
        ("webm", "libopus"),
    ]
]
VIDEOS = [
    video(gray_steps(4), container=container, codec=codec)
    for container, codec in [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")]
]


@st.composite
def broken(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """A valid file with some bytes changed, most often in its head, and perhaps its end cut off; or noise."""
    content = bytearray(draw(st.sampled_from(whole)))
    head = st.integers(0, min(len(content), 256) - 1)
    places = draw(st.lists(head | st.integers(0, len(content) - 1), min_size=1, max_size=12))
    for place in places:
        content[place] = draw(st.integers(0, 255))
    end = draw(st.just(len(content)) | st.integers(0, len(content)))
    return bytes(content[:end])


def contents(whole: list[bytes]) -> st.SearchStrategy[bytes]:
    return broken(whole) | st.binary(max_size=300)


def result_of(read: Callable[[], Result]) -> Result | None:
    """What is read; None where it is refused, as it must be: by the field's name."""
    try:
        return read()
    except InvalidRequest as refusal:
        named = refusal.param == "inputs" and "`inputs`" in refusal.message
    assert named
    return None


@settings(max_examples=300, deadline=None)
@given(contents(IMAGES))
def test_any_bytes_are_an_image_or_are_refused(content: bytes) -> None:
    image = result_of(lambda: read_image(content, LIMITS, param="inputs"))
    assert image is None or image.mode == "RGB"


@settings(max_examples=300, deadline=None)
@given(contents(SOUNDS))
def test_any_bytes_are_a_sound_or_are_refused(content: bytes) -> None:
    samples = result_of(lambda: read_audio(content, LIMITS, sampling_rate=RATE, param="inputs"))
    assert samples is None or (samples.ndim == 1 and samples.size and np.isfinite(samples).all())


@settings(max_examples=150, deadline=None)
@given(contents(VIDEOS))
def test_any_bytes_are_a_video_or_are_refused(content: bytes) -> None:
    frames = result_of(lambda: read_video(content, LIMITS, frames=2, frame_sampling_rate=2, param="inputs"))
    assert frames is None or [frame.shape for frame in frames] == [frames[0].shape] * 2
    spread = result_of(lambda: read_video_frames(content, LIMITS, max_frames=3, param="inputs"))
    assert spread is None or (1 <= len(spread[0]) <= 3 and spread[1] > 0)
