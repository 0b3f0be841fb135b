"""Inputs of several kinds at once, for the library and as a user sends them, and the library's answers to them."""

import copy
from typing import Any

import numpy as np
from PIL import Image

from tests.golden.media_jobs import MediaJobs as MediaJobs
from tests.golden.media_jobs import sent
from tests.tiny_models import samples
from tests.tiny_models.calls import SOUND_PROMPT
from worker.media.encode import wav
from worker.tasks.json_values import json_value

WIDE, TALL, SQUARE = samples.images()
DOCUMENTS = [samples.document(seed) for seed in range(3)]
LONG_DOCUMENT = {
    **DOCUMENTS[0],
    "word_boxes": [
        (word, [10 * place, place, 10 * place + 40, 200]) for place, word in enumerate(["Anna", "total"] * 48)
    ],
}
"""More words than the tiny LayoutLM reads at once."""


def heard(recording: Any) -> Any:
    """What a 16-bit file keeps of it."""
    return (np.rint(recording * 32768).clip(-32768, 32767) / 32768).astype(np.float32)


def as_sent(value: Any) -> Any:
    """Inputs of the library as a user sends them, images and sounds in base64; the same for its answers."""
    if isinstance(value, Image.Image):
        return sent(value)
    if isinstance(value, np.ndarray):
        return sent(wav(value, samples.SAMPLING_RATE))
    if isinstance(value, dict):
        return {name: as_sent(item) for name, item in value.items()}
    return [as_sent(item) for item in value] if isinstance(value, list | tuple) else value


def user(*content: Any) -> dict[str, Any]:
    """A user's message; a text is a part, an image or a sound too."""
    parts: list[dict[str, Any]] = []
    for item in content:
        kind = "image" if isinstance(item, Image.Image) else "audio" if isinstance(item, np.ndarray) else "text"
        parts.append({"type": kind, kind: item})
    return {"role": "user", "content": parts}


CHATS = [
    *([user(image, question)] for image, question in zip(samples.images(), samples.QUESTIONS, strict=True)),
    [{"role": "system", "content": "describe the sea"}, {"role": "user", "content": "yes"}],
    [user(SQUARE, "who?"), {"role": "assistant", "content": [{"type": "text", "text": "the sea"}]}],
]
PROMPTS: list[Any] = [
    {"images": [WIDE], "text": "<image> the sea"},
    {"images": TALL, "text": "<image> yes and the"},
    {"images": [WIDE, SQUARE], "text": "<image> yes and <image> the"},
    {"text": "who won"},
]
SOUND_CHATS = [
    *([user(heard(sound), text)] for sound, text in zip(samples.sounds(), samples.QUESTIONS, strict=True)),
    [user("yes", heard(samples.sound(0.5)), heard(samples.sound(0.7)), "and?")],
]
SOUND_PROMPTS: list[Any] = [
    *({"audio": heard(sound), "text": SOUND_PROMPT} for sound in samples.sounds()),
    {"audio": [heard(samples.sound(0.5)), heard(samples.sound(0.7))], "text": f"{SOUND_PROMPT} {SOUND_PROMPT}"},
]
WRITE = {"max_new_tokens": 8}
"""Parameters of an answer of eight tokens."""


def by_the_library(jobs: MediaJobs, value: Any, parameters: dict[str, Any]) -> Any:
    """Its answer, as JSON has it."""
    names = {"generation_parameters": "generate_kwargs"}
    given = {names.get(name, name): option for name, option in parameters.items()}
    value = copy.deepcopy(value)  # the library changes messages in place
    if isinstance(value, list):
        answer = jobs.pipeline(text=value, **given)
    elif jobs.name == "image-text-to-text":
        answer = jobs.pipeline(images=value.get("images"), text=value["text"], **given)
    else:
        answer = jobs.pipeline(value, **given)
    return json_value(as_sent(answer))
