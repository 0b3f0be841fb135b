"""The sample files hold what they were made of, and the tokenizers make real pieces of the sample texts."""

import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from tests.tiny_models import samples
from tests.tiny_models.comparison import difference


def test_a_png_gives_its_picture_back() -> None:
    """Pixel for pixel."""
    picture = samples.image(40, 72, seed=2)
    assert picture.size == (40, 72)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(samples.png(picture)))), np.asarray(picture))


def test_a_wav_gives_its_sound_back() -> None:
    """At 16 kHz, to the precision of 16 bits."""
    sound = samples.sound(0.6, seed=2)
    with wave.open(io.BytesIO(samples.wav(sound))) as reader:
        assert (reader.getframerate(), reader.getnchannels()) == (16_000, 1)
        values = np.frombuffer(reader.readframes(reader.getnframes()), dtype="<i2") / 32767
    assert values.shape == (9_600,)
    assert np.abs(values - sound).max() < 1e-4


def test_an_mp4_gives_its_film_back() -> None:
    """All its frames, near what they were: MPEG-4 loses a little. The same film is the same bytes."""
    film = samples.frames(6, seed=1)
    data = samples.mp4(film)
    with av.open(io.BytesIO(data), mode="r") as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == film.shape == (6, 32, 32, 3)
    assert np.abs(decoded.astype(int) - film).mean() < 20
    assert samples.mp4(film) == data


def test_samples_differ_in_size_and_repeat_exactly() -> None:
    """Three pictures of three shapes, three sounds of three lengths; two calls give equal ones."""
    assert len({picture.size for picture in samples.images()}) == 3
    assert len({len(sound) for sound in samples.sounds()}) == 3
    assert difference(samples.images(), samples.images(), margin=0) is None
    assert difference(samples.sounds(), samples.sounds(), margin=0) is None


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama", "tiny-t5", "tiny-mbart", "tiny-bart", "tiny-clip"])
def test_words_are_pieces_and_others_are_spelt_out(name: str, tiny_folder: Callable[[str], Path]) -> None:
    """A known word is one token, an unknown one several, and the text comes back whole."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(tiny_folder(name)))
    assert len(tokenizer.tokenize("the cat sat on the mat")) == 6
    assert len(tokenizer.tokenize("zebra")) > 1
    text = "the zebra sat on the mat"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
