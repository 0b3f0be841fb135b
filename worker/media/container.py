"""Opens sound and video files that users sent, with FFmpeg held to formats and decoders that read those bytes alone.

FFmpeg guesses a file's format from its content, and some formats are lists of other files: given the text
`ffconcat version 1.0` and `file notes.wav`, it opens that file of the worker's folder; given an SDP text, it opens a
network port. So formats are named here, and FFmpeg refuses any other before it reads more than what it guesses from.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tandem.errors import InvalidRequest

_log = logging.getLogger(__name__)

Kind = Literal["audio", "video"]

# Demuxers, by FFmpeg's names. All know their streams once the header is read, so that the limit on pixels holds
# already while FFmpeg looks for what the header left out (MPEG-TS and FLV do not).
_FORMATS = {
    "audio": ("wav", "w64", "flac", "mp3", "ogg", "mov", "matroska", "aac", "aiff", "caf", "au", "amr", "avi"),
    "video": ("mov", "matroska", "avi", "ogg"),
}

_PCM = tuple(f"pcm_{sample}" for sample in ("u8", "s8", "alaw", "mulaw")) + tuple(
    f"pcm_{sample}{end}" for sample in ("s16", "s24", "s32", "f32", "f64") for end in ("le", "be")
)

# Decoders, by FFmpeg's names. Cover art is a video stream: for a sound no picture decoder is ever started.
_DECODERS = {
    "audio": (
        *_PCM,
        *("mp3", "mp3float", "aac", "flac", "alac", "vorbis", "opus", "libopus", "ac3", "eac3"),
        *("amrnb", "libopencore_amrnb", "amrwb", "libopencore_amrwb", "adpcm_ms", "adpcm_ima_wav"),
    ),
    "video": (
        *("h264", "hevc", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d"),
        *("mpeg4", "mjpeg", "theora", "prores"),
    ),
}

_ADVICE = {
    "audio": "send a whole WAV, FLAC, MP3, Ogg, M4A, WebM, AAC, AIFF or AMR file",
    "video": "send a whole MP4, MOV, WebM, Matroska, AVI or Ogg file",
}

# Streams of one file: FFmpeg's own limit is 1,000, and each takes memory before it is looked at.
_MAX_STREAMS = 32

# Share of a file's packets that may be damaged. FFmpeg's program leaves such packets out and goes on, and common
# files have one: MP3s cut out of longer ones, or with tags that it does not know. Beyond this, what would be left is
# another sound or video than the one sent.
_MAX_DAMAGED = 0.1


@contextmanager
def opened(content: bytes, kind: Kind, *, max_pixels: int, param: str) -> Iterator[InputContainer]:
    """The file, with its streams found. Decoders allocate no frame of more than `max_pixels` (width x height).

    Raises InvalidRequest naming `param` for content that is not such a file, and for what FFmpeg finds wrong with it
    as long as the file is open.
    """
    if not content:
        raise InvalidRequest(f"`{param}` is empty; {_ADVICE[kind]}", param=param)
    options = {
        "format_whitelist": ",".join(_FORMATS[kind]),
        "codec_whitelist": ",".join(_DECODERS[kind]),
        # Against a format that would open a file all the same: no protocol has this name.
        "protocol_whitelist": "none",
        "max_streams": str(_MAX_STREAMS),
        "max_pixels": str(max_pixels),
    }
    try:
        # Titles in broken UTF-8 are no reason to refuse a file.
        with av.open(io.BytesIO(content), mode="r", options=options, metadata_errors="replace") as container:
            yield container
    except FFmpegError as error:
        raise InvalidRequest(
            f"`{param}` cannot be decoded as {kind} ({error.strerror}); {_ADVICE[kind]}", param=param
        ) from error


def audio_stream(container: InputContainer, param: str) -> AudioStream:
    """The sound of the file; raises InvalidRequest if there is none that is decoded here."""
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream):
        raise InvalidRequest(f"`{param}` has no sound in it; {_ADVICE['audio']}", param=param)
    _check_decoder(stream.codec_context, "audio", param)
    return stream


def video_stream(container: InputContainer, max_pixels: int, param: str) -> VideoStream:
    """The moving picture of the file; raises InvalidRequest if there is none that is decoded here."""
    moving = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not moving:
        raise InvalidRequest(f"`{param}` has no moving picture in it; {_ADVICE['video']}", param=param)
    stream = moving[0]
    _check_decoder(stream.codec_context, "video", param)
    # PyAV opens a context of its own, to which it hands none of the container's options.
    stream.codec_context.options = {"max_pixels": str(max_pixels)}
    return stream


def _check_decoder(context: CodecContext | None, kind: Kind, param: str) -> None:
    """A stream has no context where FFmpeg itself lacks the decoder; PyAV's types do not say so."""
    name = "something unknown" if context is None else context.codec.name
    if name not in _DECODERS[kind]:
        raise InvalidRequest(
            f"the {kind} in `{param}` is encoded as {name}, which is not decoded here; {_ADVICE[kind]}", param=param
        )


def audio_frames(container: InputContainer, stream: AudioStream, param: str) -> Iterator[AudioFrame]:
    """The decoded frames in order, without damaged packets; raises InvalidRequest if too many are."""
    return _frames(container, stream, "audio", param)


def video_frames(container: InputContainer, stream: VideoStream, param: str) -> Iterator[VideoFrame]:
    """The decoded frames in order, without damaged packets; raises InvalidRequest if too many are."""
    return _frames(container, stream, "video", param)


def _frames(container: InputContainer, stream: AudioStream | VideoStream, kind: Kind, param: str) -> Iterator[Any]:
    """Frames of the stream's kind, which PyAV's types know only for one kind at a time."""
    packets = damaged = 0
    for packet in container.demux(stream):
        packets += 1
        try:
            frames = packet.decode()
        except FFmpegError as error:
            damaged += 1
            _log.debug("a damaged packet in %s is left out: %s", param, error)
            continue
        yield from frames
    if damaged > packets * _MAX_DAMAGED:
        raise InvalidRequest(
            f"the {kind} in `{param}` is damaged: {damaged:,} of its {packets:,} packets cannot be decoded; "
            f"{_ADVICE[kind]}",
            param=param,
        )
