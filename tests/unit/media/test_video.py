"""Videos of users become the frames that transformers would sample, under limits that hold while decoding."""

import io
import struct

import av
import numpy as np
import pytest
from transformers.pipelines.video_classification import read_video_pyav
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from tandem.errors import InvalidRequest
from tests.unit.media.files import gray_steps, sound, tone, video
from worker.media.limits import MediaLimits
from worker.media.video import read_video, read_video_frames

LIMITS = MediaLimits()


@pytest.fixture(scope="module")
def steps() -> bytes:
    """40 frames at 10 a second."""
    return video(gray_steps(40))


@pytest.mark.parametrize(("frames", "frame_sampling_rate"), [(1, 1), (8, 1), (8, 4), (7, 3), (40, 1)])
def test_the_frames_are_those_of_the_pipeline(steps: bytes, frames: int, frame_sampling_rate: int) -> None:
    mine = read_video(steps, LIMITS, frames=frames, frame_sampling_rate=frame_sampling_rate, param="inputs")
    indices = np.linspace(0, frames * frame_sampling_rate - 1, num=frames, dtype=np.int64)
    with av.open(io.BytesIO(steps)) as container:
        theirs = read_video_pyav(container, indices)
    assert mine[0].dtype == np.uint8
    np.testing.assert_array_equal(np.stack(mine), theirs)


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("matroska", "libx264"), ("avi", "mpeg4")]
)
def test_each_format_gives_evenly_spaced_frames_and_their_rate(container: str, codec: str) -> None:
    content = video(gray_steps(40), container=container, codec=codec)
    frames, rate = read_video_frames(content, LIMITS, max_frames=6, param="inputs")
    assert rate == pytest.approx(10.0)
    expected = default_sample_indices_fn(VideoMetadata(total_num_frames=40, fps=10.0), num_frames=6)
    assert [round((frame.mean() - 20) / 5) for frame in frames] == list(expected)


def test_a_video_of_fewer_frames_gives_all_of_them(steps: bytes) -> None:
    frames, _ = read_video_frames(steps, LIMITS, max_frames=100, param="inputs")
    assert [round((frame.mean() - 20) / 5) for frame in frames] == list(range(40))


def test_a_video_that_is_too_short_for_the_frames_is_refused(steps: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"8 frames at a frame_sampling_rate of 6 need 48 frames") as refusal:
        read_video(steps, LIMITS, frames=8, frame_sampling_rate=6, param="inputs[0]")
    assert refusal.value.param == "inputs[0]"


def test_a_video_filmed_sideways_is_turned_upright() -> None:
    """Phones write 'turn by a quarter' into the track's header, as a matrix."""
    wide = np.zeros((48, 64, 3), dtype=np.uint8)
    wide[:, :32] = 255
    content = video([wide] * 3)
    straight = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    quarter_clockwise = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    place = content.index(straight, content.index(b"tkhd"))
    turned = content[:place] + quarter_clockwise + content[place + len(straight) :]
    (frame,) = read_video(turned, LIMITS, frames=1, frame_sampling_rate=1, param="inputs")
    assert frame.shape == (64, 48, 3)
    # Clockwise, what was on the left comes to the top.
    assert frame[:28].mean() > 230
    assert frame[36:].mean() < 25


def test_frames_above_the_limit_are_refused(steps: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"3,072 pixels \(64 x 48\); the limit is 3,071"):
        read_video(steps, MediaLimits(video_pixels=3_071), frames=1, frame_sampling_rate=1, param="inputs")
    read_video(steps, MediaLimits(video_pixels=64 * 48), frames=1, frame_sampling_rate=1, param="inputs")


def test_frames_above_the_limit_are_refused_where_the_file_claims_less() -> None:
    """The sample entry of the MP4 says 16 x 16; the H.264 stream in it has 128 x 96."""
    content = bytearray(video(gray_steps(3, width=128, height=96)))
    entry = content.index(b"avc1", content.index(b"stsd"))
    content[entry + 28 : entry + 32] = struct.pack(">HH", 16, 16)
    with pytest.raises(InvalidRequest):
        read_video(bytes(content), MediaLimits(video_pixels=5_000), frames=1, frame_sampling_rate=1, param="inputs")
    assert read_video(bytes(content), LIMITS, frames=1, frame_sampling_rate=1, param="inputs")[0].ndim == 3


def test_what_lies_beyond_the_limit_of_time_is_refused(steps: bytes) -> None:
    limits = MediaLimits(video_seconds=2.0)
    with pytest.raises(InvalidRequest, match="beyond the limit of 2 seconds"):
        read_video_frames(steps, limits, max_frames=4, param="inputs")
    with pytest.raises(InvalidRequest, match="beyond the limit of 2 seconds"):
        read_video(steps, limits, frames=10, frame_sampling_rate=4, param="inputs")
    # The first second of a longer video costs a second.
    assert len(read_video(steps, limits, frames=10, frame_sampling_rate=1, param="inputs")) == 10


def test_times_of_zero_do_not_outwit_the_limit_of_time() -> None:
    """40 frames at 1,000 a second last 0.04 s by their times; at most 240 of a second count as one."""
    content = video(gray_steps(40), rate=1_000)
    with pytest.raises(InvalidRequest, match=r"beyond the limit of 0\.1 seconds"):
        read_video_frames(content, MediaLimits(video_seconds=0.1), max_frames=4, param="inputs")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "`inputs` is empty; send a whole MP4"),
        (b"hello, this is no video", "cannot be decoded as video"),
        (sound(tone(0.5, 16_000), 16_000, container="ipod", codec="aac"), "no moving picture"),
        (video(gray_steps(3))[:500], "cannot be decoded as video"),
    ],
    ids=["empty", "text", "sound alone", "cut short"],
)
def test_what_is_no_video_is_refused_by_name(content: bytes, message: str) -> None:
    for read in (
        lambda: read_video(content, LIMITS, frames=1, frame_sampling_rate=1, param="inputs"),
        lambda: read_video_frames(content, LIMITS, max_frames=2, param="inputs"),
    ):
        with pytest.raises(InvalidRequest, match=message) as refusal:
            read()
        assert refusal.value.param == "inputs"
