"""Training a head, from the outside: an encoder that makes embeddings learns to classify, tag and answer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tandem.errors import InvalidTrainingData
from tandem.specs import Hyperparameters, LoraMethod
from tandem.specs.training_rows import TextClassificationRow
from tests.unit.training.tiny_encoders import TOKENIZERS, question_rows, tagged_rows, text_rows, tiny_body
from worker.encoders.adapted_body import AdaptedBody
from worker.encoders.encoder_adapter import read_encoder_adapter
from worker.training.loop import TrainingOutcome, train
from worker.training.turns import Turns
from worker.wheel_models.topics import topic_questions
from worker.wheel_models.wheels import minilm_folder

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it loads an adapter.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _one_compute_thread() -> Iterator[None]:
    """The batches are too small for two, which would spin while they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def body() -> PreTrainedModel:
    """An encoder without a head, as it is loaded to make embeddings."""
    return tiny_body()


def learn(body: PreTrainedModel, folder: Path, **settings: Any) -> TrainingOutcome:
    tokenizer = settings.pop("tokenizer", TOKENIZERS["bert"])
    events = settings.pop("events", [])
    given: dict[str, Any] = {"validation_rows": None, "method": LoraMethod(r=4), **settings}
    given.setdefault("hyperparameters", Hyperparameters(max_steps=6, batch_size=3, learning_rate=1e-2))
    return train(
        body,
        tokenizer,
        base_name="tiny-bert",
        turns=Turns(0.02),
        on_event=events.append,
        check=lambda: None,
        folder=folder,
        **given,
    )


def test_three_tasks_are_learned_on_one_body(body: PreTrainedModel, tmp_path: Path) -> None:
    """Each adapter brings its own head; the body that they share, and that serves meanwhile, never changes."""
    ids = torch.arange(10).reshape(1, 10) + 5
    with torch.no_grad():
        before = body(input_ids=ids).last_hidden_state
    learn(body, tmp_path / "topics", task="text-classification", training_rows=text_rows())
    learn(body, tmp_path / "names", task="token-classification", training_rows=tagged_rows())
    learn(body, tmp_path / "answers", task="question-answering", training_rows=question_rows())
    with torch.no_grad():
        assert torch.equal(body(input_ids=ids).last_hidden_state, before)
    for name, task_type in (("topics", "SEQ_CLS"), ("names", "TOKEN_CLS"), ("answers", "QUESTION_ANS")):
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert (config["task_type"], config["base_model_name_or_path"]) == (task_type, "tiny-bert")


def test_what_is_published_can_be_served(body: PreTrainedModel, tmp_path: Path) -> None:
    """The batcher reads the folder for the same body: the head, its labels, and the updates of the body's layers."""
    learn(body, tmp_path, task="text-classification", training_rows=text_rows())
    adapter = read_encoder_adapter("topics", tmp_path, body)
    assert adapter.task == "text-classification"
    assert list(adapter.head.config.id2label.values()) == ["animals", "money", "weather"]
    assert len(adapter.weights.modules) == 2 * 2, "queries and values of two layers"


def test_a_body_that_serves_adapters_is_trained_like_one_alone(body: PreTrainedModel, tmp_path: Path) -> None:
    """Serving puts its own linears into the resident; the twin is built without them, and the adapter is the same,
    byte for byte."""
    learn(body, tmp_path / "alone", task="text-classification", training_rows=text_rows())
    serving = tiny_body()
    AdaptedBody(serving, adapter_slots=1, adapter_rank=8)
    assert type(serving.encoder.layer[0].attention.self.query) is not torch.nn.Linear
    learn(serving, tmp_path / "serving", task="text-classification", training_rows=text_rows())
    for name in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
        assert (tmp_path / "serving" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_the_published_folder_says_what_its_outputs_mean(body: PreTrainedModel, tmp_path: Path) -> None:
    """Labels are numbered in the order of their names, in a `config.json` beside PEFT's two files."""
    learn(body, tmp_path, task="text-classification", training_rows=text_rows())
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "config.json",
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "animals", "1": "money", "2": "weather"}
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_an_evaluation_says_how_good_the_answers_are(body: PreTrainedModel, tmp_path: Path) -> None:
    """Beside the loss: for entities their F1, counted whole."""
    events: list[dict[str, Any]] = []
    rows = tagged_rows()
    outcome = learn(
        body, tmp_path, task="token-classification", training_rows=rows, validation_rows=rows[:2], events=events
    )
    evaluations = [event for event in events if event["type"] == "evaluation"]
    assert [set(event) for event in evaluations] == [
        {"type", "step", "loss", "accuracy", "precision", "recall", "f1"}
    ] * 2
    assert outcome.validation_figures_after is not None
    assert outcome.validation_figures_after["f1"] == evaluations[-1]["f1"]


def test_a_label_must_be_known_from_training(body: PreTrainedModel, tmp_path: Path) -> None:
    rows = [TextClassificationRow(text="who won the match", label="sports")]
    with pytest.raises(InvalidTrainingData, match="no row of the training file has the label 'sports'") as raised:
        learn(body, tmp_path, task="text-classification", training_rows=text_rows(), validation_rows=rows)
    assert raised.value.param == "validation_file"


def test_a_real_encoder_learns_topics_from_a_few_questions(tmp_path: Path) -> None:
    """MiniLM tells what questions are about that it has not seen: far better than naming the most frequent topic,
    after a minute's training on some 500 others. PEFT reads the adapter and says the same."""
    questions = topic_questions()

    def rows(pairs: list[tuple[str, int]]) -> list[TextClassificationRow]:
        return [TextClassificationRow(text=text, label=questions.topics[topic]) for text, topic in pairs]

    held_out = questions.held_out
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(minilm_folder())
    outcome = learn(
        AutoModel.from_pretrained(minilm_folder(), dtype=torch.float32).eval(),
        tmp_path,
        tokenizer=tokenizer,
        task="text-classification",
        training_rows=rows(questions.fitted),
        validation_rows=rows(held_out),
        method=LoraMethod(r=16, alpha=32),
        hyperparameters=Hyperparameters(max_steps=32, batch_size=32, learning_rate=3e-3, max_tokens=64),
    )
    topics = [topic for _, topic in held_out]
    most_frequent = max(topics.count(topic) for topic in set(topics)) / len(topics)
    assert outcome.validation_figures_after is not None
    accuracy = outcome.validation_figures_after["accuracy"]
    assert accuracy > most_frequent + 0.15

    base = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=len(questions.topics))
    model = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        batch = tokenizer([text for text, _ in held_out], padding=True, return_tensors="pt")
        predicted = model(**batch).logits.argmax(dim=-1)
    right = (predicted == torch.tensor(topics)).float().mean().item()
    assert right == pytest.approx(accuracy, abs=0.01)
