"""The figures of quality: entities in BIO tags, answers as SQuAD counts them, and the best span over windows."""

import pytest
import torch

from tandem.specs import TrainingRow
from tests.unit.training.tiny_encoders import TOKENIZERS, question, question_rows, tiny_body
from worker.training.data import Example
from worker.training.objectives import Metric, objective_for
from worker.training.objectives.answers import exact_match, overlap
from worker.training.objectives.entities import entities, f1
from worker.training.objectives.question_answering import EncodedQuestions
from worker.training.objectives.text_classification import Accuracy
from worker.training.objectives.token_classification import Tags


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-PER", {("PER", 0, 2)}),
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("O I-LOC B-LOC I-LOC", {("LOC", 1, 2), ("LOC", 2, 4)}),
        ("NOUN NOUN VERB", {("NOUN", 0, 2), ("VERB", 2, 3)}),
        ("B-X-Y I-X-Y", {("X-Y", 0, 2)}),
        ("", set()),
    ],
)
def test_entities_of_a_sentence(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def test_f1_is_the_harmonic_mean() -> None:
    assert f1(0.5, 1.0) == pytest.approx(2 / 3)
    assert f1(0.0, 0.0) == 0.0


def logits_of(classes: list[list[int]], number: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), number).float()


def test_entities_count_whole_and_words_one_by_one() -> None:
    """One entity of two is found whole, one too short; tokens without a label, and padding, do not count."""
    labels = ("B-LOC", "B-PER", "I-PER", "O")
    examples = [
        Example((1, 2, 3, 4, 5), (-100, 1, 2, -100, 3)),
        Example((1, 2, 3), (-100, 0, -100)),
    ]
    tags = Tags(examples, labels)
    tags.add(logits_of([[0, 1, 3, 0, 3], [3, 0, 3, 1, 1]], 4))
    assert tags.figures() == {
        "accuracy": 3 / 4,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
    }


def test_accuracy_is_the_share_of_right_classes() -> None:
    accuracy = Accuracy([0, 1, 2])
    accuracy.add(logits_of([[0], [2]], 3))
    accuracy.add(logits_of([[2]], 3))
    assert accuracy.figures() == {"accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("predicted", "expected", "exact", "f1_of_words"),
    [
        ("the Cat!", ["cat"], 1.0, 1.0),
        ("black cat", ["cat"], 0.0, 2 / 3),
        ("cat", ["a dog", "the black cat"], 0.0, 2 / 3),
        ("cat cat", ["cat"], 0.0, 2 / 3),
        ("", [], 1.0, 1.0),
        ("cat", [], 0.0, 0.0),
        ("", ["cat"], 0.0, 0.0),
    ],
)
def test_answers_agree_as_squad_counts(predicted: str, expected: list[str], exact: float, f1_of_words: float) -> None:
    assert exact_match(predicted, expected) == exact
    assert overlap(predicted, expected) == pytest.approx(f1_of_words)


def encoded(*rows: TrainingRow, max_tokens: int = 64) -> tuple[EncodedQuestions, Metric]:
    objective = objective_for("question-answering", tiny_body(), TOKENIZERS["bert"], max_tokens, rows)
    data = objective.encode(rows)
    assert isinstance(data, EncodedQuestions)
    metric = objective.metric(data)
    assert metric is not None
    return data, metric


def pointing_at(data: EncodedQuestions, spans: list[tuple[int, int]], height: float = 5.0) -> torch.Tensor:
    """Logits [windows, 2, tokens] with a peak at each window's start and end."""
    logits = torch.zeros(len(spans), 2, max(len(example.input_ids) for example in data.examples))
    for window, span in enumerate(spans):
        for side, token in enumerate(span):
            logits[window, side, token] = height
    return logits


def test_perfect_logits_are_perfect_answers() -> None:
    """Also for the question without an answer, when training has seen some such."""
    data, metric = encoded(*question_rows())
    metric.add(pointing_at(data, [example.labels for example in data.examples]))
    assert metric.figures() == {"exact_match": 1.0, "f1": 1.0}


def test_a_span_lies_in_the_context_and_runs_forward() -> None:
    """Peaks in the question, and an end before its start, make no answer."""
    data, metric = encoded(question("who slept", "the cat slept", "the cat"))
    context = next(place for place, at in enumerate(data.windows[0].offsets) if at)
    logits = pointing_at(data, [(1, 1)], height=50.0)
    logits[0, 0, context] = logits[0, 1, context + 1] = 5.0
    logits[0, 0, context + 2] = 6.0
    metric.add(logits)
    assert metric.figures() == {"exact_match": 1.0, "f1": 1.0}


def test_the_best_window_answers() -> None:
    context = "the cat sat on the mat , " * 8 + "Anna Smith works"
    data, metric = encoded(question("who works", context, "Anna Smith"), max_tokens=40)
    assert len(data.windows) > 2
    logits = pointing_at(data, [(8, 9)] * len(data.windows), height=1.0)
    (right,) = (place for place, example in enumerate(data.examples) if example.labels != (0, 0))
    for side, token in enumerate(data.examples[right].labels):
        logits[right, side] = 0.0
        logits[right, side, token] = 5.0
    half = len(data.windows) // 2
    metric.add(logits[:half])
    metric.add(logits[half:])
    assert metric.figures() == {"exact_match": 1.0, "f1": 1.0}
