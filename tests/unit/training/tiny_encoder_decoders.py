"""Small real encoder-decoders to train adapters on: random models of three families, their tokenizers, and rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tandem.specs import Hyperparameters, LoraMethod, TrainingRow
from tandem.specs.methods import AnyMethod
from tandem.specs.training_rows import TextToTextRow
from worker.training.loop import TrainingOutcome, train
from worker.training.turns import Turns

WRITTEN = {
    "the cat sat on the mat": "the cat",
    "a dog barked at the old town": "a dog barked",
    "rain fell on the sea all night": "rain",
    "the price of the invoice": "the total price of the bank",
    "Anna Smith works in London": "Anna",
    "what is the total": "the price",
}
"""A text → what is to be written for it, of several lengths."""


def written_rows() -> list[TrainingRow]:
    return [TextToTextRow(input=text, target=target) for text, target in WRITTEN.items()]


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def model_of(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(folder)
    return model.eval()


def learn(
    resident: PreTrainedModel,
    base: Path,
    folder: Path,
    *,
    rows: list[TrainingRow] | None = None,
    validation_rows: list[TrainingRow] | None = None,
    method: AnyMethod | None = None,
    check: Callable[[], None] = lambda: None,
    turns: Turns | None = None,
    resume_from: Path | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
    **hyperparameters: Any,
) -> TrainingOutcome:
    """`train` with small defaults: four steps of three rows. `base` is the resident's folder."""
    settings = {"max_steps": 4, "batch_size": 3, "learning_rate": 1e-2, **hyperparameters}
    return train(
        resident,
        tokenizer_of(base),
        base_name=base.name,
        task="text2text-generation",
        training_rows=written_rows() if rows is None else rows,
        validation_rows=validation_rows,
        method=method or LoraMethod(),
        hyperparameters=Hyperparameters(**settings),
        turns=turns or Turns(quantum_seconds=0.0),
        on_event=lambda _event: None,
        check=check,
        folder=folder,
        resume_from=resume_from,
        on_checkpoint=on_checkpoint,
    )
