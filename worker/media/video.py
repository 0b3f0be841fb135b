"""Decodes a video that a user sent into the frames that transformers' pipelines and processors take."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tandem.errors import InvalidRequest
from worker.media.container import opened, video_frames, video_stream
from worker.media.limits import MediaLimits

RGBFrame = np.ndarray[Any, np.dtype[np.uint8]]

# Frames a second beyond which a video is not what cameras make (slow motion has 240). With the limit on seconds it
# bounds the frames that are decoded, for times in a file may all be 0.
_MAX_FRAME_RATE = 240


def read_video(
    content: bytes, limits: MediaLimits, *, frames: int, frame_sampling_rate: int, param: str
) -> list[RGBFrame]:
    """`frames` RGB frames [height, width, 3]: those numbered `linspace(0, frames * frame_sampling_rate - 1)`.

    As transformers' `VideoClassificationPipeline.preprocess` takes them; and turned upright, where the file says that
    it was filmed otherwise. Decoding ends with the last frame that is needed. Both numbers must be at least 1.

    Raises InvalidRequest naming `param`: not a video, damaged, too short for these frames, frames of more than
    `limits.video_pixels`, or the frames lie beyond `limits.video_seconds`.
    """
    last = frames * frame_sampling_rate - 1
    wanted = [int(number) for number in np.linspace(0, last, num=frames, dtype=np.int64)]
    with opened(content, "video", max_pixels=limits.video_pixels, param=param) as container:
        taken = _take(_Frames(container, limits, param), wanted)
    if len(taken) < frames:
        raise InvalidRequest(
            f"the video in `{param}` is too short: {frames} frames at a frame_sampling_rate of {frame_sampling_rate} "
            f"need {wanted[-1] + 1} frames, and it has fewer; lower frame_sampling_rate or num_frames, or send a "
            "longer one",
            param=param,
        )
    return taken


def read_video_frames(
    content: bytes, limits: MediaLimits, *, max_frames: int, param: str
) -> tuple[list[RGBFrame], float]:
    """At most `max_frames` (at least 1) evenly spaced RGB frames [height, width, 3], and the video's frames a second.

    As transformers' `default_sample_indices_fn`: frame `i * total // max_frames`, or all frames of a shorter video.
    The total is counted in the file's packets, without decoding; frames that then cannot be decoded are left out.

    Raises InvalidRequest naming `param`: not a video, damaged, longer than `limits.video_seconds`, or frames of more
    than `limits.video_pixels`.
    """
    with opened(content, "video", max_pixels=limits.video_pixels, param=param) as container:
        counted = _Frames(container, limits, param)
        total = counted.count()
        rate = counted.stream.average_rate or counted.stream.guessed_rate
    kept = min(total, max_frames)
    # Opened anew: not every format can be rewound exactly to its first packet.
    with opened(content, "video", max_pixels=limits.video_pixels, param=param) as container:
        taken = _take(_Frames(container, limits, param), [number * total // kept for number in range(kept)])
    if not taken or not rate:
        raise InvalidRequest(f"the video in `{param}` has no frames, or no frame rate; encode it again", param=param)
    return taken, float(rate)


def _take(frames: "_Frames", wanted: list[int]) -> list[RGBFrame]:
    """The frames of these numbers (ascending); fewer if the video ends before. Only these become RGB."""
    numbers = set(wanted)
    taken: list[RGBFrame] = []
    for number, frame in enumerate(frames.decoded()):
        if number in numbers:
            taken.append(_rgb(frame, frames.stream))
            if number == wanted[-1]:
                break
    return taken


def _rgb(frame: VideoFrame, stream: VideoStream) -> RGBFrame:
    # A stream may change its size on the way; models take frames of one size, that of the header.
    array = frame.to_ndarray(format="rgb24", width=stream.codec_context.width, height=stream.codec_context.height)
    # `rotation` is in degrees, counterclockwise, as numpy's turns are.
    return np.ascontiguousarray(np.rot90(array, round(frame.rotation / 90)), dtype=np.uint8)


class _Frames:
    """The frames of an open video, under the limits."""

    def __init__(self, container: InputContainer, limits: MediaLimits, param: str) -> None:
        self._container = container
        self._limits = limits
        self._param = param
        self.stream = video_stream(container, limits.video_pixels, param)
        self._check_pixels(self.stream.codec_context.width, self.stream.codec_context.height)

    def count(self) -> int:
        """The frames in the file, counted without decoding."""
        total = 0
        for packet in self._container.demux(self.stream):
            # The last packet is empty: it makes a decoder give what it holds back.
            if packet.size:
                self._check_length(total, packet.pts)
                total += 1
        return total

    def decoded(self) -> Iterator[VideoFrame]:
        for number, frame in enumerate(video_frames(self._container, self.stream, self._param)):
            self._check_length(number, frame.pts)
            self._check_pixels(frame.width, frame.height)
            yield frame

    def _check_length(self, number: int, time: int | None) -> None:
        """`time` is in the stream's unit; a stream may start at another time than 0."""
        seconds = number / _MAX_FRAME_RATE
        if time is not None and self.stream.time_base is not None:
            seconds = max(seconds, float((time - (self.stream.start_time or 0)) * self.stream.time_base))
        if seconds > self._limits.video_seconds:
            raise InvalidRequest(
                f"the video in `{self._param}` goes on beyond the limit of {self._limits.video_seconds:g} seconds "
                f"(of at most {_MAX_FRAME_RATE} frames each); send a part of it",
                param=self._param,
            )

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self._limits.video_pixels:
            raise InvalidRequest(
                f"the frames of the video in `{self._param}` have {width * height:,} pixels "
                f"({width:,} x {height:,}); the limit is {self._limits.video_pixels:,}: scale it down",
                param=self._param,
            )
