"""For every task of the library, three inputs and the parameters of one call, in the form that its pipeline takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tiny_models import samples

TOPICS = ["sport", "money or food"]
THINGS = ["red square", "cat", "the sea"]
NOISES = ["music", "speech", "a dog"]
SOUND_PROMPT = "<|audio_bos|><|AUDIO|><|audio_eos|> describe the sea"
"""A prompt of tiny-qwen2-audio: the middle mark is where the sound goes."""


@dataclass(frozen=True)
class Call:
    """What to ask of a task's pipeline: `pipe(input, **parameters)` for each of the inputs."""

    inputs: Callable[[Path], list[Any]]
    """Three inputs of different sizes; a film is a file, written into the folder given."""

    parameters: dict[str, Any] = field(default_factory=dict)


def _texts(_folder: Path) -> list[Any]:
    return [samples.SENTENCES[index] for index in (0, 2, 3)]


def _masked(_folder: Path) -> list[Any]:
    return [samples.SENTENCES[index].replace("the", "[MASK]", 1) for index in (0, 2, 3)]


def _images(_folder: Path) -> list[Any]:
    return list(samples.images())


def _pairs(_folder: Path) -> list[Any]:
    wide, tall, square = samples.images()
    return [(wide, samples.image(seed=4)), (tall, square), (samples.image(seed=5), wide)]


def _sounds(_folder: Path) -> list[Any]:
    return list(samples.sounds())


def _films(folder: Path) -> list[Any]:
    paths = []
    for seed in range(3):
        path = folder / f"film-{seed}.mp4"
        path.write_bytes(samples.mp4(samples.frames(4 + 2 * seed, seed=seed)))
        paths.append(str(path))
    return paths


def _chats_with_images(_folder: Path) -> list[Any]:
    return [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        for image, question in zip(samples.images(), samples.QUESTIONS, strict=True)
    ]


def _sounds_with_text(_folder: Path) -> list[Any]:
    return [{"audio": sound, "text": SOUND_PROMPT} for sound in samples.sounds()]


CALLS: dict[str, Call] = {
    "feature-extraction": Call(_texts),
    "fill-mask": Call(_masked),
    "text-classification": Call(_texts, {"top_k": None}),
    "token-classification": Call(lambda _: list(samples.ENTITY_SENTENCES)),
    "zero-shot-classification": Call(_texts, {"candidate_labels": TOPICS}),
    "text-generation": Call(_texts),
    "decision": Call(lambda _: [samples.decision(), samples.decision("yes"), samples.decision(samples.SENTENCES[0])]),
    "table-question-answering": Call(lambda _: [samples.table(index) for index in range(3)]),
    "image-classification": Call(_images),
    "image-feature-extraction": Call(_images),
    "image-segmentation": Call(_images),
    "object-detection": Call(_images),
    "depth-estimation": Call(_images),
    # 64 points: one chunk an image instead of sixteen.
    "mask-generation": Call(_images, {"points_per_crop": 8}),
    "keypoint-matching": Call(_pairs),
    "video-classification": Call(_films),
    "audio-classification": Call(_sounds),
    "automatic-speech-recognition": Call(_sounds),
    "text-to-audio": Call(_texts),
    "zero-shot-audio-classification": Call(_sounds, {"candidate_labels": NOISES}),
    "zero-shot-image-classification": Call(_images, {"candidate_labels": THINGS}),
    "zero-shot-object-detection": Call(
        lambda _: [{"image": image, "candidate_labels": THINGS} for image in samples.images()]
    ),
    "document-question-answering": Call(lambda _: [samples.document(seed) for seed in range(3)]),
    "image-text-to-text": Call(_chats_with_images),
    "any-to-any": Call(_sounds_with_text),
}
"""The 25 tasks that have a pipeline in transformers. (The dropped tasks have pipelines of our own.)"""
