"""The same small inputs for every test: sentences, images, sounds, a film, a table, documents and conversations."""

import io
import math
import wave
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SENTENCES = (
    "the cat sat on the mat",
    "a dog barked at the cat",
    "rain fell on the old town all night",
    "she reads a long book about the sea and the ships that cross it every year",
    "who won the match in Paris?",
    "yes",
    "the sea was calm and the night was long, so the old man slept",
    "what is the total price of the invoice?",
    "Anna Smith works at the bank in London",
    "a photo of a red square, a green circle or a blue line",
    "this text is about sport, money or food",
    "translate English to French: the house is small",
    "describe the sound of music and speech",
    "answer Yes or No",
)
SAMPLING_RATE = 16_000
"""Samples a second of every sound here; what the audio models of the library expect."""

TABLE = {
    "City": ["Paris", "London", "Rome"],
    "People": ["2100000", "8900000", "2800000"],
    "River": ["Seine", "Thames", "Tiber"],
}
TABLE_QUERIES = ("which city has the river Thames?", "how many people live in Paris?", "what is the total of people?")

ENTITY_SENTENCES = ("Anna Smith works at the bank in London", "the old man slept in Paris", "yes, Anna")
QUESTIONS = ("what is the total price?", "who works at the bank?", "how many people live in the old town?")
CHAT = (
    {"role": "system", "content": "describe the sea"},
    {"role": "user", "content": "what is the price of the book?"},
)


def image(width: int = 64, height: int = 48, *, seed: int = 0) -> Image.Image:
    """An RGB picture of `width` by `height` pixels: a gradient, a square and a circle, coloured by `seed`."""
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    fall = np.linspace(255, 0, height, dtype=np.uint8)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.roll(ramp, seed * 7)[None, :]
    pixels[..., 1] = fall[:, None]
    pixels[..., 2] = (seed * 53 + 40) % 256
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    left = (seed * 11) % (width // 2)
    draw.rectangle((left, height // 4, left + width // 4, height // 2), fill=(220, 30 * (seed % 8), 40))
    draw.ellipse((width // 2, height // 3, width - 2, height - 2), fill=(20, 160, (seed * 90) % 256))
    return picture


def images() -> list[Image.Image]:
    """Three pictures of three sizes: wide, tall and square."""
    return [image(64, 48, seed=1), image(40, 72, seed=2), image(56, 56, seed=3)]


def sound(seconds: float = 1.0, *, pitch: float = 220.0, seed: int = 0) -> NDArray[np.float32]:
    """A tone of `pitch` Hz that fades, with a little noise: float32 in [-1, 1], shape [samples], at 16 kHz."""
    times = np.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    tone = 0.5 * np.sin(2 * math.pi * pitch * times) * np.exp(-times)
    noise = np.random.default_rng(seed).normal(0, 0.05, times.shape)
    return np.clip(tone + noise, -1, 1).astype(np.float32)


def sounds() -> list[NDArray[np.float32]]:
    """Three sounds of three lengths, at 16 kHz."""
    return [sound(1.0, pitch=220, seed=1), sound(0.6, pitch=440, seed=2), sound(1.4, pitch=880, seed=3)]


def frames(count: int = 8, *, seed: int = 0, size: int = 32) -> NDArray[np.uint8]:
    """A film of a square picture that changes a little each time: uint8, shape [count, size, size, 3]."""
    return np.stack([np.asarray(image(size, size, seed=seed + index)) for index in range(count)])


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file, which loses nothing."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def wav(samples: NDArray[np.float32], *, rate: int = SAMPLING_RATE) -> bytes:
    """The sound as a WAV file: one channel, 16 bits a sample."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def mp4(film: NDArray[np.uint8], *, rate: int = 8) -> bytes:
    """The film as an MP4 file of `rate` frames a second, in MPEG-4 part 2, which every FFmpeg writes."""
    file = io.BytesIO()
    with av.open(file, mode="w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = film.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def document(seed: int = 0) -> dict[str, Any]:
    """A page with its words and their boxes (left, top, right, bottom, in thousandths of the page): no OCR needed."""
    words = ("invoice", "of", "Anna", "Smith", "the", "total", "price", "is", str(40 + seed))
    page = Image.new("RGB", (200, 160), "white")
    draw = ImageDraw.Draw(page)
    boxes = []
    for index, word in enumerate(words):
        left, top = 10 + 60 * (index % 3), 10 + 45 * (index // 3)
        draw.text((left, top), word, fill="black")
        box = (left, top, left + 50, top + 15)
        boxes.append((word, [int(1000 * edge / side) for edge, side in zip(box, (200, 160, 200, 160), strict=True)]))
    return {"image": page, "question": QUESTIONS[seed % len(QUESTIONS)], "word_boxes": boxes}


def table(index: int = 0) -> dict[str, Any]:
    """A question of TABLE_QUERIES about the first rows of TABLE: three rows, then two, then one."""
    rows = {column: cells[: 3 - index % 3] for column, cells in TABLE.items()}
    return {"table": rows, "query": TABLE_QUERIES[index % len(TABLE_QUERIES)]}


def decision(state: str = "the house is small and the price is long") -> dict[str, Any]:
    """A request of the decision task, with one question of each kind."""
    return {
        "state": state,
        "questions": {
            "buy": {"type": "noul", "instructions": "is the house small?"},
            "topic": {
                "type": "choice",
                "instructions": "what is this text about?",
                "criteria": {"sport": "the match", "money": "the price"},
            },
            "mood": {"type": "score", "instructions": "how calm is it?", "criteria": ["long", "calm", "yes"]},
        },
    }
