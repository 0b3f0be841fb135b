"""No file that a user sends makes a worker open another file, or a port."""

import io
from pathlib import Path

import av
import pytest

from tandem.errors import InvalidRequest
from tests.unit.media.files import gray_steps, sound, tone, video
from worker.media.audio import read_audio
from worker.media.encode import wav
from worker.media.limits import MediaLimits
from worker.media.video import read_video

CONCAT = b"ffconcat version 1.0\nfile notes.wav\n"
HLS = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9.0,\nnotes.wav\n#EXT-X-ENDLIST\n"
SDP = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 50000 RTP/AVP 0\r\n"
DASH = b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet/></Period></MPD>'


@pytest.fixture
def _notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of somebody else in the worker's folder."""
    (tmp_path / "notes.wav").write_bytes(wav(tone(1.0, 16_000), 16_000))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_notes")
def test_ffmpeg_left_to_itself_reads_a_file_that_a_list_names() -> None:
    """The danger is real: without it, the tests below would show nothing."""
    with av.open(io.BytesIO(CONCAT)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 16_000


@pytest.mark.usefixtures("_notes")
@pytest.mark.parametrize("content", [CONCAT, HLS, SDP, DASH], ids=["concat", "HLS", "SDP", "DASH"])
def test_a_file_that_names_others_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="cannot be decoded as audio"):
        read_audio(content, MediaLimits(), sampling_rate=16_000, param="inputs")
    with pytest.raises(InvalidRequest, match="cannot be decoded as video"):
        read_video(content, MediaLimits(), frames=1, frame_sampling_rate=1, param="inputs")


def test_a_format_that_is_not_on_the_list_is_refused_though_ffmpeg_reads_it() -> None:
    content = sound(tone(1.0, 16_000), 16_000, container="mpegts", codec="aac")
    with pytest.raises(InvalidRequest, match="cannot be decoded as audio"):
        read_audio(content, MediaLimits(), sampling_rate=16_000, param="inputs")


def test_a_decoder_that_is_not_on_the_list_is_refused_by_name() -> None:
    content = sound(tone(1.0, 16_000), 16_000, container="matroska", codec="mp2")
    with pytest.raises(InvalidRequest, match="encoded as mp2, which is not decoded here"):
        read_audio(content, MediaLimits(), sampling_rate=16_000, param="inputs")
    content = video(gray_steps(3), rate=25, container="matroska", codec="mpeg2video")
    with pytest.raises(InvalidRequest, match="encoded as mpeg2video, which is not decoded here"):
        read_video(content, MediaLimits(), frames=1, frame_sampling_rate=1, param="inputs")
