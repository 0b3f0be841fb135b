"""What bench/finetune.py trains: the settings that a user would send, and the rows, of two real data sets."""

from dataclasses import dataclass
from typing import Literal

import torch

from bench.decoder import DTYPE
from bench.decoder import MODEL as DECODER
from bench.reuters import read_r8
from examples.chatterbot import load
from tandem.specs import ChatRow, Hyperparameters, LoraMethod, TrainingRow
from tandem.specs.finetune import FineTuneTask
from tandem.specs.training_rows import TextClassificationRow


@dataclass(frozen=True, slots=True)
class Recipe:
    """A fine-tuning job, without its rows."""

    model: str
    """Its name in the catalogue, which is that of its folder too."""
    dtype: torch.dtype
    """Of the base; what is trained is fp32 everywhere."""
    task: FineTuneTask
    method: LoraMethod
    hyperparameters: Hyperparameters


CHAT = Recipe(
    DECODER,
    DTYPE,
    "text-generation",
    LoraMethod(r=16, alpha=32),
    Hyperparameters(batch_size=8, epochs=1, learning_rate=1e-3, warmup_steps=8, max_tokens=128),
)
"""Answers as chatterbot-corpus gives them. No row is longer than 92 tokens."""
R8 = Recipe(
    "all-minilm-l6-v2",
    torch.float32,
    "text-classification",
    LoraMethod(r=16, alpha=16, target_modules=("query", "key", "value", "dense")),
    Hyperparameters(batch_size=16, epochs=2, learning_rate=2e-3, warmup_steps=60, max_tokens=64),
)
"""The topics of Reuters R8, learned by all linear layers of the body; tried on a seventh of the training split."""


def chat_rows(part: Literal["training", "held_out"]) -> list[TrainingRow]:
    """Exchanges of chatterbot-corpus; no question is in both parts."""
    return [ChatRow.model_validate(exchange.row) for exchange in getattr(load(), part)]


def r8_rows(split: Literal["train", "test"]) -> list[TextClassificationRow]:
    return [TextClassificationRow(text=text, label=topic) for text, topic in read_r8(split)]
