"""Rows and specs of a training for embeddings: how they are read, and what is refused."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import ValidationError

from tandem.errors import InvalidRequest, InvalidTrainingData
from tandem.specs import FineTuneSpec
from tandem.specs.methods import PromptTuningMethod
from tandem.specs.training_rows import AnchorRow, TextRow
from tandem.training_rows import read_rows
from tests.unit.training.tiny_encoders import POSITIONS, TOKENIZERS, learn, tiny_body
from worker.training.objectives.feature_extraction import FeatureExtraction

TASK: Final = "feature-extraction"


@pytest.mark.parametrize(
    ("asked", "right"), [("anchor", "positive"), ("query", "answer"), ("question", "answer"), ("query", "positive")]
)
def test_rows_are_read_by_the_names_that_data_sets_have(asked: str, right: str) -> None:
    (row,) = read_rows([json.dumps({asked: "who slept?", right: "the old man", "id": 7}).encode()], TASK)
    assert row == AnchorRow(anchor="who slept?", positive="the old man", id=7)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"positive": "rain"}, "has no `anchor`"),
        ({"anchor": "rain"}, "has no `positive`"),
        ({"anchor": "rain", "positive": ""}, "`positive`"),
        ({"anchor": "rain", "positive": "sea", "score": 0.5}, "`score`"),
    ],
)
def test_rows_without_their_texts_are_refused_by_line(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidTrainingData, match=f"line 1: {reason}"):
        list(read_rows([json.dumps(row).encode()], TASK))


def test_another_tasks_row_is_refused() -> None:
    objective = FeatureExtraction(tiny_body(), TOKENIZERS["bert"], POSITIONS)
    with pytest.raises(InvalidTrainingData, match=r'row 1: a row for feature-extraction is \{"anchor"'):
        objective.encode([TextRow(text="rain")])


def test_virtual_tokens_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="for feature-extraction use lora or ia3"):
        learn(tiny_body(), tmp_path, TASK, method=PromptTuningMethod(type="prompt-tuning", num_virtual_tokens=4))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"method": {"type": "prefix-tuning", "num_virtual_tokens": 4}}, "for feature-extraction use lora or ia3"),
        ({"method": {"type": "oft"}}, "oft's rotations fit no batch of several adapters"),
        ({"hyperparameters": {"batch_size": 1}}, "`hyperparameters.batch_size` must be at least 2"),
        ({"hyperparameters": {"packing": True}}, "packing` is for text-generation"),
    ],
    ids=["virtual tokens", "oft", "one row", "packing"],
)
def test_what_cannot_be_trained_is_refused_in_the_spec(fields: dict[str, Any], reason: str) -> None:
    spec = {"kind": "finetune", "task": TASK, "model": "m", "training_file": "file-" + "0" * 24, **fields}
    with pytest.raises(ValidationError, match=reason):
        FineTuneSpec.model_validate(spec)
