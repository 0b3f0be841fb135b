"""Adapters through the batcher: mixed with strangers, each job's result is the library's pipeline's for it alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

from tandem.errors import InvalidRequest, PromptTooLong, UnsupportedTask
from tandem.specs import ClassificationParameters, EmbeddingParameters
from tandem.specs.answers import QuestionAnsweringParameters
from tandem.specs.encoders import TextPair
from tandem.specs.text import TokenClassificationParameters
from tests.unit.encoders.adapter_folders import RECIPES, Recipe, library_model, save_adapter, save_body
from tests.unit.encoders.tiny_models import MAX_TOKENS, SENTENCES
from worker.encoders import EncoderBatcher
from worker.encoders.adapted_body import AdaptedBody, BodyRow
from worker.encoders.adapter_task import AdapterParameters, AdapterTask
from worker.encoders.encoder_adapter import EncoderAdapter, read_encoder_adapter
from worker.engine.adapters.weights import AdapterWeights
from worker.pipelines.question_answering import QuestionAnsweringPipeline
from worker.tasks.feature_extraction import FeatureExtraction

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOLERANCE = 1e-5
"""Between a padded mixed batch and one text alone, float32: rounding in another order of summation."""

TEXTS = list(SENTENCES)
ONE_TEXT = {"input_ids": torch.tensor([[2, 5, 6, 3]])}
QUESTIONS = [
    {"question": "who won the match", "context": " ".join(SENTENCES)},  # longer than the body: several windows
    {"question": "the cat sat on", "context": SENTENCES[0]},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_body("bert", tmp_path_factory.mktemp("body"))


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    recipes = RECIPES | {"rating": Recipe("SEQ_CLS", 2, ("stars",))}
    for seed, (name, recipe) in enumerate(recipes.items()):
        save_adapter(base, folder / name, recipe, seed=seed)
    return {name: folder / name for name in recipes}


class Served:
    """A body with two adapter slots, its adapters, and a batcher over all of them."""

    def __init__(self, base: Path, folders: dict[str, Path]) -> None:
        model = AutoModel.from_pretrained(base)
        self.adapters: dict[str | None, EncoderAdapter | None] = {None: None}
        self.adapters |= {name: read_encoder_adapter(name, folder, model) for name, folder in folders.items()}
        self.body = AdaptedBody(model, adapter_slots=2, adapter_rank=8)
        self.task = AdapterTask(self.body, AutoTokenizer.from_pretrained(base))
        self.batcher = EncoderBatcher(self.task, budget=4096, max_wait_seconds=0)

    def submit(self, adapter: str | None, parameters: Any, inputs: list[Any] = TEXTS) -> Any:
        return self.batcher.submit(inputs, AdapterParameters(self.adapters[adapter], parameters))


@pytest.fixture
def served(base: Path, folders: dict[str, Path]) -> Iterator[Served]:
    served = Served(base, folders)
    yield served
    served.batcher.stop()


def of_the_library(
    task: str, base: Path, folder: Path, task_type: str, *, inputs: list[Any] = TEXTS, **options: Any
) -> list[Any]:
    """What the library's pipeline gives for the adapter alone, one input after another."""
    tokenizer = AutoTokenizer.from_pretrained(base, model_max_length=MAX_TOKENS)
    model = library_model(base, folder, task_type)
    reference: Any
    if task == "question-answering":  # which the library itself has no longer
        reference = QuestionAnsweringPipeline(model=model, tokenizer=tokenizer, device="cpu")
    else:
        reference = pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
    return [reference([value], **options)[0] for value in inputs]


def assert_same(found: Any, expected: Any) -> None:
    """Equal labels, words and places; scores equal up to rounding."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert [{**entry, "score": None} for entry in mine] == [{**entry, "score": None} for entry in theirs]
        scores = [float(entry["score"]) for entry in theirs]
        assert [float(entry["score"]) for entry in mine] == pytest.approx(scores, abs=TOLERANCE)


def test_jobs_of_all_tasks_in_one_batch_get_the_pipelines_results(
    served: Served, base: Path, folders: dict[str, Path]
) -> None:
    """Four adapters of three tasks and the base, over two slots."""
    classification = ClassificationParameters()
    mood = served.submit("mood", classification)
    topic = served.submit("topic", ClassificationParameters(top_k=2))
    entities = served.submit("entities", TokenClassificationParameters())
    groups = served.submit("entities", TokenClassificationParameters(aggregation_strategy="simple"))
    answers = served.submit("answers", QuestionAnsweringParameters(top_k=3), QUESTIONS)
    embeddings = served.submit(None, EmbeddingParameters())
    again = served.submit("mood", classification)
    served.batcher.start()

    expected = of_the_library("text-classification", base, folders["mood"], "SEQ_CLS", top_k=None)
    assert_same(mood.result(), expected)
    assert_same(again.result(), expected)
    assert_same(topic.result(), of_the_library("text-classification", base, folders["topic"], "SEQ_CLS", top_k=2))
    tokens = of_the_library("token-classification", base, folders["entities"], "TOKEN_CLS")
    assert sum(len(entry) for entry in tokens) > len(TEXTS)
    assert_same(entities.result(), tokens)
    options = {"aggregation_strategy": "simple"}
    assert_same(
        groups.result(), of_the_library("token-classification", base, folders["entities"], "TOKEN_CLS", **options)
    )
    assert_same(
        answers.result(),
        of_the_library("question-answering", base, folders["answers"], "QUESTION_ANS", inputs=QUESTIONS, top_k=3),
    )
    plain = FeatureExtraction(AutoModel.from_pretrained(base), AutoTokenizer.from_pretrained(base))
    alone = EncoderBatcher(plain, budget=4096, max_wait_seconds=0)
    alone.start()
    torch.testing.assert_close(
        torch.tensor(embeddings.result()), torch.tensor(alone.run(TEXTS, EmbeddingParameters())), atol=1e-6, rtol=1e-6
    )
    alone.stop()
    assert served.batcher.counts.batches == 1


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_every_aggregation_is_the_librarys(
    served: Served, base: Path, folders: dict[str, Path], strategy: Any
) -> None:
    served.batcher.start()
    found = served.submit("entities", TokenClassificationParameters(aggregation_strategy=strategy)).result()
    reference = of_the_library(
        "token-classification", base, folders["entities"], "TOKEN_CLS", aggregation_strategy=strategy
    )
    assert_same(found, reference)


@pytest.mark.parametrize("name", ["tags", "rating"])
def test_labels_that_do_not_exclude_each_other_get_a_sigmoid(
    served: Served, base: Path, folders: dict[str, Path], name: str
) -> None:
    """The library chooses by the config: a problem of several labels, or only one label."""
    served.batcher.start()
    found = served.submit(name, ClassificationParameters()).result()
    reference = of_the_library("text-classification", base, folders[name], "SEQ_CLS", top_k=None)
    assert_same(found, reference)
    logits = of_the_library(
        "text-classification", base, folders[name], "SEQ_CLS", top_k=None, function_to_apply="none"
    )
    for labels, raw in zip(found, logits, strict=True):
        values = torch.tensor([entry["score"] for entry in raw])
        assert [entry["score"] for entry in labels] == pytest.approx(values.sigmoid().tolist(), abs=TOLERANCE)


def test_an_adapter_that_had_to_leave_its_slot_comes_back_the_same(served: Served) -> None:
    served.batcher.start()
    first = served.submit("mood", ClassificationParameters()).result()
    for name in ("topic", "tags"):
        served.submit(name, ClassificationParameters()).result()
    assert served.body.resident == ["topic", "tags"]
    assert_same(served.submit("mood", ClassificationParameters()).result(), first)
    assert served.body.resident == ["tags", "mood"]


def test_an_adapter_that_trained_its_head_alone_takes_no_slot(served: Served) -> None:
    """Its rows are the base's to the body, and run beside as many adapters as there are slots."""
    mood, tags, head_alone = served.adapters["mood"], served.adapters["tags"], served.adapters["rating"]
    assert head_alone is not None
    head_alone = replace(head_alone, weights=AdapterWeights(head_alone.id, {}))
    rows = [BodyRow(served.body.arguments(ONE_TEXT), adapter) for adapter in (mood, tags, head_alone, None)]

    assert served.body.forwards([row.adapter for row in rows]) == [[0, 1, 2, 3]]
    output = served.body.forward(rows)
    assert set(served.body.resident) == {"mood", "tags"}
    assert torch.equal(output.of([2]).last_hidden_state, output.of([3]).last_hidden_state)


def test_an_adapter_in_use_stays_in_its_slot(served: Served) -> None:
    """A batch of two adapters over two slots keeps the one that is there, and replaces the other."""
    served.batcher.start()
    served.submit("mood", ClassificationParameters()).result()
    served.submit("topic", ClassificationParameters()).result()
    served.batcher.stop()
    rows = [
        piece
        for name in ("mood", "tags")
        for (piece,) in served.task.encode(
            TEXTS[:2], AdapterParameters(served.adapters[name], ClassificationParameters())
        )
    ]
    served.task.forward(rows, list)
    assert set(served.body.resident) == {"mood", "tags"}


def test_a_text_longer_than_the_body_is_refused_by_name(served: Served) -> None:
    with pytest.raises(PromptTooLong, match=rf"inputs\[1\] has \d+ tokens; the model takes {MAX_TOKENS}") as refusal:
        served.submit("mood", ClassificationParameters(), ["yes", "a " * MAX_TOKENS])
    assert refusal.value.param == "inputs[1]"


def test_a_rank_above_the_banks_is_refused_before_the_batch(served: Served, base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "wide", Recipe("SEQ_CLS", 9), seed=1)
    wide = read_encoder_adapter("wide", tmp_path / "wide", served.body.body)
    with pytest.raises(InvalidRequest, match="'wide' has rank 9; this worker serves ranks up to 8"):
        served.task.encode(["yes"], AdapterParameters(wide, ClassificationParameters()))


def test_an_adapter_whose_numbers_overflow_fails_alone(served: Served, base: Path, tmp_path: Path) -> None:
    """Its rows share a forward with others, whose results are as ever."""
    save_adapter(base, tmp_path / "wild", RECIPES["mood"], seed=1, lora_alpha=1e38)
    served.adapters["wild"] = read_encoder_adapter("wild", tmp_path / "wild", served.body.body)
    mood = served.submit("mood", ClassificationParameters())
    wild = served.submit("wild", ClassificationParameters())
    served.batcher.start()
    assert isinstance(wild.exception(), InvalidRequest)
    assert "'wild'" in str(wild.exception())
    assert_same(mood.result(), served.submit("mood", ClassificationParameters()).result())
    assert all(0 <= entry["score"] <= 1 for labels in mood.result() for entry in labels)


def test_a_pair_of_texts_is_classified_as_the_library_does(
    served: Served, base: Path, folders: dict[str, Path]
) -> None:
    served.batcher.start()
    found = served.submit("mood", ClassificationParameters(), [TextPair(text=TEXTS[0], text_pair=TEXTS[1])]).result()
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    assert_same(
        found, of_the_library("text-classification", base, folders["mood"], "SEQ_CLS", inputs=[pair], top_k=None)
    )


def test_an_adapter_does_its_own_task_alone(served: Served) -> None:
    adapter = served.adapters["entities"]
    assert adapter is not None
    adapter.check_does("token-classification")
    with pytest.raises(UnsupportedTask, match="'entities' does token-classification, not text-classification"):
        adapter.check_does("text-classification")
