"""Decodes a sound that a user sent into the samples that transformers' audio pipelines take."""

from fractions import Fraction
from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from tandem.errors import InvalidRequest
from worker.media.container import audio_frames, audio_stream, opened
from worker.media.limits import MediaLimits

Samples = np.ndarray[Any, np.dtype[np.float32]]

# Samples a second that a file may have. FFmpeg's resampler builds a filter whose length is the ratio of the rates:
# a header that claims 2 GHz would have it take gigabytes. The highest rate in use is 768 kHz.
_SOURCE_RATES = range(1_000, 768_001)

# Of a sound no picture is decoded; FFmpeg takes no smaller limit than this.
_NO_PIXELS = 1


def read_audio(content: bytes, limits: MediaLimits, *, sampling_rate: int, param: str) -> Samples:
    """Mono samples at `sampling_rate` (1/s), float32 [samples], full scale at 1.0.

    As `transformers.pipelines.audio_utils.ffmpeg_read`: FFmpeg's resampler and its weights for channels (two become
    (left + right) / sqrt(2), which may exceed 1.0). A mono sound that has the rate already comes back exactly.

    Raises InvalidRequest naming `param`: not a sound, damaged, empty, of values that are not finite, or longer than
    `limits.audio_seconds`, which stops the decoding at once whatever the header says.
    """
    mono = _Mono(limits, sampling_rate, param)
    with opened(content, "audio", max_pixels=_NO_PIXELS, param=param) as container:
        for frame in audio_frames(container, audio_stream(container, param), param):
            mono.add(frame)
        return mono.finish()


class _Mono:
    """Collects frames of any layout as mono samples at one rate."""

    def __init__(self, limits: MediaLimits, sampling_rate: int, param: str) -> None:
        self._limits = limits
        self._rate = sampling_rate
        self._param = param
        self._seconds = Fraction(0)
        # Grows in place, where a list of arrays would need as much again to be joined.
        self._samples = bytearray()
        self._source: tuple[str, str, int] | None = None
        self._resampler = self._new_resampler()

    def add(self, frame: AudioFrame) -> None:
        self._check(frame)
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        if source != self._source:
            # Streams may change on the way (chained Ogg, HE-AAC); a resampler is made for one source.
            self._drain()
            self._source = source
        self._append(self._resampler.resample(frame))

    def finish(self) -> Samples:
        self._drain()
        samples: Samples = np.frombuffer(self._samples, dtype=np.float32)
        if not samples.size:
            raise InvalidRequest(f"the sound in `{self._param}` has no samples; record it again", param=self._param)
        if not np.isfinite(samples).all():
            raise InvalidRequest(
                f"the sound in `{self._param}` has samples that are not finite numbers; export it again, for example "
                "as 16-bit WAV",
                param=self._param,
            )
        return samples

    def _check(self, frame: AudioFrame) -> None:
        """Before resampling, so that no more than the limit is ever held."""
        if frame.sample_rate not in _SOURCE_RATES:
            raise InvalidRequest(
                f"the sound in `{self._param}` has {frame.sample_rate:,} samples a second; send one with "
                f"{_SOURCE_RATES.start:,} to {_SOURCE_RATES.stop - 1:,}",
                param=self._param,
            )
        self._seconds += Fraction(frame.samples, frame.sample_rate)
        if self._seconds > self._limits.audio_seconds:
            raise InvalidRequest(
                f"the sound in `{self._param}` is longer than the limit of {self._limits.audio_seconds:g} seconds; "
                "send it in parts",
                param=self._param,
            )

    def _drain(self) -> None:
        """Takes what the resampler holds back, and starts a new one."""
        if self._source is not None:
            self._append(self._resampler.resample(None))
        self._resampler = self._new_resampler()

    def _append(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            # A flushed resampler that passes frames through gives back the None it was flushed with.
            if frame is not None:
                self._samples += frame.to_ndarray().tobytes()

    def _new_resampler(self) -> AudioResampler:
        return AudioResampler(format="flt", layout="mono", rate=self._rate)
