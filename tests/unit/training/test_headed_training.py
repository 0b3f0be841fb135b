"""Adapters with heads: the numerics of their training, and what is published."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tandem.errors import InvalidRequest, InvalidTrainingData, UnsupportedTask
from tandem.specs import LoraMethod
from tandem.specs.finetune import FineTuneTask
from tandem.specs.training_rows import TextClassificationRow
from tests.unit.training.interrupted import Shelf, assert_resumed_equals_uninterrupted
from tests.unit.training.plain_recipe import weights
from tests.unit.training.tiny_encoders import (
    ROWS,
    body_without_pooler,
    learn,
    text_rows,
    tiny_body,
)
from worker.training.loop import TrainingOutcome

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it loads an adapter or wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TASKS: tuple[FineTuneTask, ...] = ("text-classification", "token-classification", "question-answering")


@pytest.mark.parametrize("task", TASKS)
def test_accumulated_micro_steps_are_one_mean(task: FineTuneTask, tmp_path: Path) -> None:
    """Over rows or labels, however unevenly they lie in the micro steps: every step's loss is as in one batch of them
    all."""
    body = tiny_body()
    body.config.hidden_dropout_prob = body.config.attention_probs_dropout_prob = 0.0
    rows = ROWS[task]()[:4]
    whole = learn(body, tmp_path / "whole", task, rows=rows, batch_size=4)
    parts = learn(body, tmp_path / "parts", task, rows=rows, batch_size=1, gradient_accumulation_steps=4)
    losses = [event["loss"] for event in whole.history]
    assert [event["loss"] for event in parts.history] == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("task", "call"),
    [
        pytest.param("text-classification", 2, id="text-classification at the start"),
        pytest.param("text-classification", 9, id="text-classification in an accumulation"),
        pytest.param("token-classification", 15, id="token-classification in an evaluation"),
        pytest.param("question-answering", 9, id="question-answering in an accumulation"),
    ],
)
def test_resumed_equals_uninterrupted(task: FineTuneTask, call: int, tmp_path: Path) -> None:
    """The head, its optimizer state and the metrics are part of the checkpoint, bit for bit."""
    exacting: dict[str, Any] = {
        "validation_rows": ROWS[task]()[:3],
        "method": LoraMethod(dropout=0.2),
        "max_steps": 5,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "eval_steps": 2,
    }

    def train(folder: Path, **options: Any) -> TrainingOutcome:
        return learn(tiny_body(), folder, task, **exacting, **options)

    assert_resumed_equals_uninterrupted(train, tmp_path, call=call)


def test_a_checkpoint_of_other_labels_is_refused(tmp_path: Path) -> None:
    """The tokens are the same, and so are the numbers of the classes; what they mean is not."""
    rows = [TextClassificationRow(text=text, label=label) for text, label in (("rain", "a"), ("sea", "b"))]
    renamed = [row.model_copy(update={"label": {"a": "c", "b": "d"}[row.label]}) for row in rows]
    shelf = Shelf(tmp_path / "shelf")
    learn(tiny_body(), tmp_path / "first", rows=[*rows], on_checkpoint=shelf, save_steps=2)
    with pytest.raises(InvalidRequest, match="a training with other rows"):
        learn(tiny_body(), tmp_path / "second", rows=[*renamed], resume_from=shelf.last, save_steps=2)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("text-classification", {"accuracy"}),
        ("token-classification", {"accuracy", "precision", "recall", "f1"}),
        ("question-answering", {"exact_match", "f1"}),
    ],
)
def test_rows_are_learned_by_heart_and_the_figures_say_so(
    task: FineTuneTask, names: set[str], tmp_path: Path
) -> None:
    """In the events, and as the first and the last evaluation's in the outcome."""
    body, rows = tiny_body(), ROWS[task]()
    events: list[dict[str, Any]] = []
    targets = ("query", "key", "value", "dense")
    outcome = learn(
        body,
        tmp_path,
        task,
        rows=rows,
        validation_rows=rows,
        on_event=events.append,
        method=LoraMethod(r=16, alpha=32, target_modules=targets),
        max_steps=60,
        batch_size=9,
        learning_rate=2e-2,
    )
    first, last = (event for event in events if event["type"] == "evaluation")
    assert json.loads(json.dumps(events)) == events
    assert outcome.validation_figures_before == {name: first[name] for name in names}
    assert outcome.validation_figures_after == {name: last[name] for name in names}
    assert set(last) == {"type", "step", "loss", *names}
    assert all(last[name] == 1.0 for name in names), last
    assert min(first[name] for name in names) < 0.8, first


def test_the_head_of_a_bfloat16_body_is_trained_in_single_precision(tmp_path: Path) -> None:
    """As the low-rank matrices are: steps of 1e-4 would be lost in a bfloat16 weight's rounding."""
    rows = text_rows()
    body = tiny_body(dtype=torch.bfloat16)
    outcome = learn(body, tmp_path, rows=rows, validation_rows=rows, max_steps=30)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}
    assert body.dtype == torch.bfloat16
    assert outcome.validation_loss_before is not None
    assert outcome.validation_loss_after is not None
    assert outcome.validation_loss_after < 0.8 * outcome.validation_loss_before


def test_targets_are_the_bodys_alone(tmp_path: Path) -> None:
    """`dense` names layers of RoBERTa's body and one of its head: the head is trained whole, and only that."""
    learn(tiny_body("roberta"), tmp_path, family="roberta", method=LoraMethod(target_modules=("dense",)))
    names = {name.removeprefix("base_model.model.") for name in weights(tmp_path)}
    head = {name for name in names if name.startswith("classifier.")}
    assert head == {f"classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")}
    assert all(name.startswith("roberta.encoder.layer.") and ".lora_" in name for name in names - head)
    with pytest.raises(InvalidRequest, match="no linear layer called out_proj; it has dense, key, query, value"):
        learn(tiny_body("roberta"), tmp_path, family="roberta", method=LoraMethod(target_modules=("out_proj",)))


def test_a_head_of_several_parts_is_trained_whole(tmp_path: Path) -> None:
    """DistilBERT's classifier has a layer before it."""
    learn(tiny_body("distilbert"), tmp_path, family="distilbert")
    names = {name.removeprefix("base_model.model.") for name in weights(tmp_path) if ".lora_" not in name}
    assert names == {f"{layer}.{part}" for layer in ("pre_classifier", "classifier") for part in ("weight", "bias")}


def test_a_body_without_what_the_class_needs_is_refused(tmp_path: Path) -> None:
    """BERT classifies what its pooler makes; a body that has none cannot be given a random one in silence."""
    with pytest.raises(UnsupportedTask, match=r"no parameter pooler\.dense\.weight"):
        learn(body_without_pooler(), tmp_path)
    learn(body_without_pooler(), tmp_path, "token-classification")


def test_one_label_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    rows = [TextClassificationRow(text="rain", label="weather")] * 3
    with pytest.raises(InvalidTrainingData, match="all rows have the label 'weather'"):
        learn(tiny_body(), tmp_path, rows=[*rows])
