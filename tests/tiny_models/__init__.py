"""Tiny random models for every task, made in code: `build("tiny-vit", folder)` writes all that a pipeline loads."""

from pathlib import Path

import torch

from tests.tiny_models.audio import AUDIO
from tests.tiny_models.entry import TinyModel
from tests.tiny_models.multimodal import MULTIMODAL
from tests.tiny_models.text import TEXT
from tests.tiny_models.vision import VISION
from tests.tiny_models.weights import redraw

TINY_MODELS: dict[str, TinyModel] = {**TEXT, **VISION, **AUDIO, **MULTIMODAL}
"""Every tiny model by name."""


def build(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes the tiny model `name` into `folder`, with weights drawn from `seed`, and returns the folder.

    The folder is made if it is missing. The same name and seed write the same weights in every process.
    """
    entry = TINY_MODELS[name]
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = entry.make(folder)
    redraw(parts.model, seed, gain=entry.gain)
    entry.adjust(parts)
    parts.model.eval().save_pretrained(folder)
    for preprocessor in parts.preprocessors:
        preprocessor.save_pretrained(folder)
    return folder
