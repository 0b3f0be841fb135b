"""Adapters with heads of their own, from rows of a file to answers, over one resident encoder of a whole service."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from tandem import InvalidTrainingData, Tandem, UnsupportedTask
from tandem.embedded_service import EmbeddedService

# PEFT asks transformers by a name that it is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

BASE = "tiny-bert"
CONTEXT = "the old man slept in Paris"
ROWS: dict[str, list[dict[str, Any]]] = {
    "text-classification": [
        {"text": text, "label": label}
        for text, label in (("the sea was calm", "sea"), ("who won the match", "sport"), ("rain fell", "sea"))
    ]
    * 8,
    "token-classification": [
        {"tokens": ["Anna", "slept", "in", "Paris"], "tags": ["B-PER", "O", "O", "B-LOC"]},
        {"tokens": ["the", "man", "slept"], "tags": ["O", "O", "O"]},
    ]
    * 8,
    "question-answering": [
        {"question": "who slept?", "context": CONTEXT, "answers": {"text": ["the old man"], "answer_start": [0]}}
    ]
    * 8,
}
TRAINING = {"max_steps": 12, "batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def adapters(tasks_service: EmbeddedService) -> Iterator[dict[str, str]]:
    """An adapter of each task on one base."""
    with Tandem(tasks_service.api_url, tasks_service.api_key) as client:
        jobs = {
            task: client.finetune(
                BASE, rows, task=task, suffix=task.partition("-")[0], hyperparameters=TRAINING, method={"alpha": 32}
            )
            for task, rows in ROWS.items()
        }
        yield {task: job.wait(timeout=240)["adapter"] for task, job in jobs.items()}


def test_all_three_answer_at_once_over_the_model_that_makes_embeddings(
    tasks_client: Tandem, adapters: dict[str, str]
) -> None:
    inputs: dict[str, Any] = {
        "text-classification": "the sea was calm",
        "token-classification": "Anna slept in Paris",
        "question-answering": {"question": "who slept?", "context": CONTEXT},
    }
    jobs = {task: tasks_client.submit(task, inputs[task], model=adapter) for task, adapter in adapters.items()}
    vectors = tasks_client.submit("feature-extraction", "the sea was calm", model=BASE)
    rows = {task: job.wait(timeout=240)["rows"][0] for task, job in jobs.items()}
    assert {label["label"] for label in rows["text-classification"]} == {"sea", "sport"}
    assert all(entity["entity"] in {"B-PER", "B-LOC"} for entity in rows["token-classification"])
    answer = rows["question-answering"]
    assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"]
    assert len(vectors.wait(timeout=240)["rows"][0]) > 8
    (place,) = next(model for model in tasks_client.models() if model.id == BASE).resident
    assert place["task"] == "feature-extraction"


def test_the_answer_is_what_peft_gives(
    tasks_client: Tandem, adapters: dict[str, str], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    adapter = adapters["text-classification"]
    folder = tasks_client.download_adapter(adapter, tmp_path / "adapter")
    config = AutoConfig.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folders[BASE], config=config)
    model = PeftModel.from_pretrained(base, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folders[BASE])
    with torch.inference_mode():
        expected = model(**tokenizer("who won the match", return_tensors="pt")).logits[0].softmax(-1)
    found = tasks_client.run("text-classification", "who won the match", model=adapter)["rows"][0]
    scores = {label["label"]: label["score"] for label in found}
    for place, label in config.id2label.items():
        assert scores[label] == pytest.approx(float(expected[int(place)]), abs=1e-5)


def test_an_adapter_does_its_own_task_alone(tasks_client: Tandem, adapters: dict[str, str]) -> None:
    with pytest.raises(UnsupportedTask, match="trained for text-classification"):
        tasks_client.submit("token-classification", "Anna", model=adapters["text-classification"])


def test_rows_of_another_task_are_refused_by_their_line(tasks_client: Tandem) -> None:
    rows = [*ROWS["text-classification"][:2], ROWS["token-classification"][0]]
    with pytest.raises(InvalidTrainingData, match="line 3"):
        tasks_client.finetune(BASE, rows, task="text-classification")
