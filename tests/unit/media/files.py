"""Real sound and video files for these tests, encoded by FFmpeg."""

import io
from typing import Any

import av
import numpy as np

FRAME_SIZE = 1024
"""Samples of a frame for encoders that take any number."""


def sound(samples: np.ndarray[Any, Any], rate: int, *, container: str, codec: str, layout: str = "mono") -> bytes:
    """Float samples [samples] or [channels, samples] as a file."""
    planes = np.atleast_2d(samples).astype(np.float32)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.layout = layout
        stream.codec_context.open()
        fit = av.AudioResampler(
            format=stream.codec_context.format,
            layout=layout,
            rate=rate,
            frame_size=stream.codec_context.frame_size or FRAME_SIZE,
        )
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate = rate
        for part in [*fit.resample(frame), *fit.resample(None), None]:
            for packet in stream.encode(part):
                output.mux(packet)
    return file.getvalue()


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray[Any, Any]:
    """A sine wave at half of full scale."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def video(
    frames: list[np.ndarray[Any, Any]], *, rate: int = 10, container: str = "mp4", codec: str = "libx264"
) -> bytes:
    """RGB frames [height, width, 3] as a file."""
    height, width, _ = frames[0].shape
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Enough for grays to stay what they are.
        stream.bit_rate = 2_000_000
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    return file.getvalue()


def gray_steps(count: int, *, width: int = 64, height: int = 48) -> list[np.ndarray[Any, Any]]:
    """Frames of one gray each, which grows by 5 from frame to frame: its brightness tells a frame's number."""
    return [np.full((height, width, 3), 20 + 5 * number, dtype=np.uint8) for number in range(count)]
