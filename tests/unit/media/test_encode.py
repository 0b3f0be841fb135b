"""What models give becomes files that open again with the same content."""

import io
import wave

import numpy as np
import pytest
from PIL import Image

from worker.media.audio import read_audio
from worker.media.encode import png, wav
from worker.media.limits import MediaLimits


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "RGBA", "1"])
def test_a_png_keeps_mode_and_pixels(mode: str) -> None:
    ramp = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1_300
    image = Image.fromarray(ramp) if mode == "I;16" else Image.fromarray(ramp.astype(np.uint8)).convert(mode)
    again = Image.open(io.BytesIO(png(image)))
    assert again.mode == mode
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))


def test_a_mode_that_png_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match="mode F"):
        png(Image.new("F", (2, 2)))


def test_16_bit_samples_survive_the_way_out_and_in() -> None:
    values = np.arange(-32_768, 32_768, dtype=np.float32) / 32_768
    again = read_audio(wav(values, 16_000), MediaLimits(), sampling_rate=16_000, param="inputs")
    np.testing.assert_array_equal(again, values)


def test_what_is_louder_than_full_scale_is_clipped() -> None:
    with wave.open(io.BytesIO(wav(np.array([-2.0, -1.0, 1.0, 2.0], dtype=np.float32), 8_000))) as reader:
        assert np.frombuffer(reader.readframes(4), "<i2").tolist() == [-32_768, -32_768, 32_767, 32_767]
        assert (reader.getnchannels(), reader.getframerate()) == (1, 8_000)


def test_channels_are_kept() -> None:
    with wave.open(io.BytesIO(wav(np.array([[0.5, 0.5], [-0.5, 0.25]], dtype=np.float32), 8_000))) as reader:
        assert reader.getnchannels() == 2
        assert np.frombuffer(reader.readframes(2), "<i2").tolist() == [16_384, -16_384, 16_384, 8_192]


@pytest.mark.parametrize("samples", [np.array([0.0, np.nan]), np.zeros((1, 2, 3))], ids=["no number", "three axes"])
def test_what_is_no_sound_is_an_error(samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"not finite|\[samples\]"):
        wav(samples, 8_000)
