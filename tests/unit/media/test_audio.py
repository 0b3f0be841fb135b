"""Sounds of users become mono samples at the model's rate; what is too long, broken or unsafe is refused by name."""

import io
import struct
import tracemalloc
import wave

import numpy as np
import pytest
from PIL import Image

from tandem.errors import InvalidRequest
from tests.unit.media.files import sound, tone
from worker.media.audio import read_audio
from worker.media.encode import wav
from worker.media.limits import MediaLimits

LIMITS = MediaLimits()
RATE = 16_000


def test_16_bit_samples_of_the_same_rate_come_back_exactly() -> None:
    values = np.random.default_rng(0).integers(-32_768, 32_768, 16_001).astype(np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframes(values.tobytes())
    samples = read_audio(file.getvalue(), LIMITS, sampling_rate=RATE, param="inputs")
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, values.astype(np.float32) / 32_768)


def test_float_samples_of_the_same_rate_come_back_exactly_even_beyond_full_scale() -> None:
    values = np.random.default_rng(0).standard_normal(16_001).astype(np.float32) * 2
    content = sound(values, RATE, container="wav", codec="pcm_f32le")
    np.testing.assert_array_equal(read_audio(content, LIMITS, sampling_rate=RATE, param="inputs"), values)


def test_two_channels_are_weighted_as_ffmpeg_does() -> None:
    """1/sqrt(2) each when the output is float, as it is for transformers' `ffmpeg_read` (`-ac 1 -f f32le`)."""
    left, right = tone(0.5, RATE), tone(0.5, RATE, 700.0)
    content = sound(np.stack([left, right]), RATE, container="wav", codec="pcm_f32le", layout="stereo")
    samples = read_audio(content, LIMITS, sampling_rate=RATE, param="inputs")
    np.testing.assert_allclose(samples, (left + right) / np.sqrt(2), atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_another_rate_is_resampled_to_the_same_sound(rate: int) -> None:
    content = sound(tone(1.0, rate), rate, container="wav", codec="pcm_f32le")
    samples = read_audio(content, LIMITS, sampling_rate=RATE, param="inputs")
    assert len(samples) == RATE
    # 10 ms at the ends are left out: a filter has no samples to look at beyond them.
    np.testing.assert_allclose(samples[160:-160], tone(1.0, RATE)[160:-160], atol=1e-4)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("flac", "flac"),
        ("aiff", "pcm_s16be"),
        ("mp3", "libmp3lame"),
        ("ogg", "libopus"),
        ("webm", "libopus"),
        ("ipod", "aac"),
        ("adts", "aac"),
    ],
)
def test_each_format_gives_the_sound_that_went_in(container: str, codec: str) -> None:
    content = sound(tone(1.0, 48_000), 48_000, container=container, codec=codec)
    samples = read_audio(content, LIMITS, sampling_rate=RATE, param="inputs")
    # Encoders may add up to a frame of silence at the ends.
    assert RATE <= len(samples) <= RATE + 800
    spectrum = np.abs(np.fft.rfft(samples[1_000:15_000]))
    assert np.argmax(spectrum) * RATE / 14_000 == pytest.approx(440, abs=2)
    # By power, for FFmpeg's AAC encoder lets single peaks of a pure tone grow.
    assert np.sqrt(np.mean(samples[1_000:15_000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)


def test_a_video_gives_its_sound_and_cover_art_does_no_harm() -> None:
    """The picture claims 60,000 x 60,000 pixels: no decoder may start on it."""
    art = io.BytesIO()
    Image.new("L", (8, 8)).save(art, "PNG")
    bomb = bytearray(art.getvalue())
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    picture = b"\0image/png\0\x03\0" + bytes(bomb)
    frame = b"APIC" + struct.pack(">I", len(picture)) + b"\0\0" + picture
    size = len(frame)
    tag = b"ID3\x03\0\0" + bytes([(size >> shift) & 0x7F for shift in (21, 14, 7, 0)]) + frame
    content = tag + sound(tone(1.0, RATE), RATE, container="mp3", codec="libmp3lame")
    assert len(read_audio(content, LIMITS, sampling_rate=RATE, param="inputs")) >= RATE


def test_a_sound_whose_channels_and_rate_change_on_the_way_is_read_to_its_end() -> None:
    """Symptom: PyAV's resampler raises ValueError at the change, which joined MP3 files have."""
    mono = sound(tone(1.0, RATE), RATE, container="mp3", codec="libmp3lame")
    both = np.stack([tone(1.0, 24_000)] * 2)
    stereo = sound(both, 24_000, container="mp3", codec="libmp3lame", layout="stereo")
    samples = read_audio(mono + stereo, LIMITS, sampling_rate=RATE, param="inputs")
    assert 2 * RATE <= len(samples) <= 2.3 * RATE
    late = samples[-12_000:-4_000]
    assert np.argmax(np.abs(np.fft.rfft(late))) * RATE / len(late) == pytest.approx(440, abs=2)


def test_a_sound_of_exactly_the_limit_is_read_and_a_sample_more_is_not() -> None:
    limits = MediaLimits(audio_seconds=1.0)
    assert len(read_audio(wav(tone(1.0, RATE), RATE), limits, sampling_rate=RATE, param="inputs")) == RATE
    longer = wav(np.zeros(RATE + 1, dtype=np.float32), RATE)
    with pytest.raises(InvalidRequest, match=r"`inputs\[1\]` is longer than the limit of 1 seconds") as refusal:
        read_audio(longer, limits, sampling_rate=RATE, param="inputs[1]")
    assert refusal.value.param == "inputs[1]"


def test_the_limit_holds_whatever_the_header_says() -> None:
    """FLAC keeps the number of samples in 36 bits at byte 21; here it says 1 second of 20."""
    content = bytearray(sound(np.zeros(20 * RATE), RATE, container="flac", codec="flac"))
    content[21] &= 0xF0
    content[22:26] = struct.pack(">I", RATE)
    with pytest.raises(InvalidRequest, match="longer than the limit of 10 seconds"):
        read_audio(bytes(content), MediaLimits(audio_seconds=10), sampling_rate=RATE, param="inputs")


def test_silence_that_unpacks_to_much_is_refused_without_memory_for_it() -> None:
    """Ten minutes, which would be 115 MB at 48 kHz; decoding ends after the first second (192 KB)."""
    content = sound(np.zeros(600 * 8_000, dtype=np.float32), 8_000, container="flac", codec="flac")
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="longer than the limit of 1 seconds"):
            read_audio(content, MediaLimits(audio_seconds=1), sampling_rate=48_000, param="inputs")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(content) + 1_000_000


@pytest.mark.parametrize("rate", [1, 999, 2_000_000_000])
def test_a_rate_that_no_sound_has_is_refused(rate: int) -> None:
    """At 2 GHz FFmpeg's filter would take gigabytes; at 1 Hz a kilobyte would become a quarter of an hour."""
    content = bytearray(wav(tone(0.1, RATE), RATE))
    content[24:28] = struct.pack("<I", rate)
    with pytest.raises(InvalidRequest, match=r"1,000 to 768,000"):
        read_audio(bytes(content), LIMITS, sampling_rate=RATE, param="inputs")


def test_samples_that_are_no_numbers_are_refused() -> None:
    values = np.array([0.0, np.nan, 1.0] * 100, dtype=np.float32)
    content = sound(values, RATE, container="wav", codec="pcm_f32le")
    with pytest.raises(InvalidRequest, match="not finite numbers"):
        read_audio(content, LIMITS, sampling_rate=RATE, param="inputs")


def test_a_damaged_packet_is_left_out_and_many_are_refused() -> None:
    content = bytearray(sound(tone(3.0, RATE), RATE, container="flac", codec="flac"))
    middle = len(content) // 2
    content[middle : middle + 4] = b"\0\0\0\0"
    assert len(read_audio(bytes(content), LIMITS, sampling_rate=RATE, param="inputs")) > 2 * RATE
    for place in range(200, len(content), 200):
        content[place : place + 4] = b"\0\0\0\0"
    with pytest.raises(InvalidRequest, match=r"in `inputs` is damaged: \d+ of its"):
        read_audio(bytes(content), LIMITS, sampling_rate=RATE, param="inputs")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "`inputs` is empty; send a whole WAV"),
        (b"hello, this is no sound", "cannot be decoded as audio"),
        (wav(np.zeros(0, dtype=np.float32), RATE), "no samples"),
        (wav(tone(1.0, RATE), RATE)[:30], "cannot be decoded as audio|no sound"),
        (sound(tone(1.0, RATE), RATE, container="ipod", codec="aac")[:3000], "cannot be decoded as audio"),
    ],
    ids=["empty", "text", "no samples", "header cut", "mp4 without its index"],
)
def test_what_is_no_sound_is_refused_by_name(content: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refusal:
        read_audio(content, LIMITS, sampling_rate=RATE, param="inputs")
    assert refusal.value.param == "inputs"
