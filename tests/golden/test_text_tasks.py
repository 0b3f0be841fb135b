"""Each task on texts gives what the library's own pipeline gives, alone and in one batch with strangers."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tandem.errors import InvalidRequest, PromptTooLong, UnsupportedTask
from tests.golden.text_jobs import Jobs, library, loaded, run_alone, same
from tests.tiny_models import samples

Folder = Callable[[str], Path]

TEXTS = list(samples.SENTENCES[:6])
LONG = " ".join(samples.SENTENCES * 3)
"""Longer than every tiny model."""
TOPICS = ["sport", "money or food", "the sea"]


def batched_with_strangers(
    task: str, folder: Path, inputs: list[Any], parameters: dict[str, Any], *, shares: bool = True
) -> list[Any]:
    """Rows of one job an input and one job of all, which ran in fewer forwards than they have rows."""
    jobs = Jobs(task, loaded(task, folder))
    for value in inputs:
        jobs.submit(value, parameters)
    jobs.submit(inputs, parameters)
    *singles, together = jobs.run()
    assert (jobs.forwards == 1) is shares, jobs.forwards
    rows = [row for (row,) in singles]
    same(together, rows)
    return rows


class TestTokenClassification:
    @pytest.mark.parametrize(
        "parameters",
        [
            {},
            {"aggregation_strategy": "simple"},
            {"aggregation_strategy": "first", "ignore_labels": ["B-PER"]},
            {"aggregation_strategy": "average", "ignore_labels": []},
            {"aggregation_strategy": "max", "stride": 8},
        ],
        ids=str,
    )
    def test_gives_the_librarys_entities(self, tiny_folder: Folder, parameters: dict[str, Any]) -> None:
        folder = tiny_folder("tiny-bert-entities")
        texts = [*samples.ENTITY_SENTENCES, *TEXTS, LONG]
        expected = [library("token-classification", folder)(text, **parameters) for text in texts]
        assert any(expected), "the tiny model finds something"
        same(run_alone("ner", loaded("token-classification", folder), texts, parameters), expected)
        same(batched_with_strangers("token-classification", folder, texts, parameters), expected)

    def test_a_text_without_entities_has_an_empty_row(self, tiny_folder: Folder) -> None:
        task = loaded("token-classification", tiny_folder("tiny-bert-entities"))
        ignored = {"ignore_labels": list(task.pipeline.model.config.id2label.values())}
        assert run_alone("token-classification", task, ["Anna"], ignored) == [[]]

    def test_a_stride_longer_than_the_model_is_refused_by_name(self, tiny_folder: Folder) -> None:
        jobs = Jobs("ner", loaded("token-classification", tiny_folder("tiny-bert-entities")))
        with pytest.raises(InvalidRequest, match="parameters cannot be used: `stride` must be less"):
            jobs.submit("Anna", {"stride": 4000, "aggregation_strategy": "simple"})


class TestZeroShotClassification:
    @pytest.mark.parametrize(
        "parameters",
        [
            {"candidate_labels": TOPICS},
            {"candidate_labels": TOPICS, "multi_label": True},
            {"candidate_labels": ["sport"], "hypothesis_template": "this is about {}"},
        ],
        ids=str,
    )
    def test_gives_the_librarys_labels(self, tiny_folder: Folder, parameters: dict[str, Any]) -> None:
        folder = tiny_folder("tiny-bert-nli")
        texts = [*TEXTS, LONG]
        expected = [library("zero-shot-classification", folder)(text, **parameters) for text in texts]
        task = loaded("zero-shot-classification", folder)
        same(run_alone("zero-shot-classification", task, texts, parameters), expected)
        same(batched_with_strangers("zero-shot-classification", folder, texts, parameters), expected)

    def test_every_label_of_every_text_is_a_row_of_one_forward(self, tiny_folder: Folder) -> None:
        jobs = Jobs("zero-shot-classification", loaded("zero-shot-classification", tiny_folder("tiny-bert-nli")))
        jobs.submit(TEXTS[:2], {"candidate_labels": TOPICS})
        jobs.submit(TEXTS[2], {"candidate_labels": ["yes"]})
        jobs.run()
        assert (jobs.forwards, jobs.rows) == (1, 7)

    def test_a_label_longer_than_the_model_is_refused(self, tiny_folder: Folder) -> None:
        """The library cuts the text, never the label."""
        jobs = Jobs("zero-shot-classification", loaded("zero-shot-classification", tiny_folder("tiny-bert-nli")))
        with pytest.raises(PromptTooLong, match=r"inputs\[0\] has \d+ tokens; the model takes 128"):
            jobs.submit("yes", {"candidate_labels": ["sea " * 200]})

    def test_a_model_without_entailment_is_refused(self, tiny_folder: Folder) -> None:
        with pytest.raises(UnsupportedTask, match="no label that begins with `entail`"):
            loaded("zero-shot-classification", tiny_folder("tiny-bert-sentiment"))


class TestTableQuestionAnswering:
    inputs = [{"table": samples.TABLE, "query": query} for query in samples.TABLE_QUERIES] + [
        {"table": {"City": ["Paris", "Rome"]}, "query": samples.TABLE_QUERIES[0]},
        {"table": samples.TABLE, "query": list(samples.TABLE_QUERIES)},
        {"table": {"City": ["Paris"] * 60, "People": [str(number) for number in range(60)]}, "query": "who?"},
    ]

    @pytest.mark.parametrize("parameters", [{}, {"padding": "max_length"}, {"sequential": True}], ids=str)
    def test_gives_the_librarys_cells(self, tiny_folder: Folder, parameters: dict[str, Any]) -> None:
        folder = tiny_folder("tiny-tapas")
        expected = [
            library("table-question-answering", folder)({**given, "table": dict(given["table"])}, **parameters)
            for given in self.inputs
        ]
        assert any(answer["cells"] for answer in expected if isinstance(answer, dict))
        task = loaded("table-question-answering", folder)
        same(run_alone("table-question-answering", task, self.inputs, parameters), expected)
        found = batched_with_strangers(
            "table-question-answering", folder, self.inputs, parameters, shares="sequential" not in parameters
        )
        same(found, expected)

    def test_a_table_that_does_not_fit_is_refused_where_it_may_not_be_cut(self, tiny_folder: Folder) -> None:
        jobs = Jobs("table-question-answering", loaded("table-question-answering", tiny_folder("tiny-tapas")))
        with pytest.raises(PromptTooLong, match=r"inputs\[0\] has \d+ tokens; the model takes 128"):
            jobs.submit(self.inputs[-1], {"truncation": False})

    def test_another_model_is_refused(self, tiny_folder: Folder) -> None:
        with pytest.raises(UnsupportedTask, match="choose a TAPAS model"):
            loaded("table-question-answering", tiny_folder("tiny-bart"))


class TestDecision:
    def test_gives_the_librarys_answers(self, tiny_folder: Folder) -> None:
        folder = tiny_folder("tiny-llama")
        requests = [
            samples.decision(),
            samples.decision("yes"),
            {**samples.decision(), "state": {"price": [1, None]}},
        ]
        requests[1]["questions"]["topic"]["criteria"]["sport"] = None
        expected = [library("decision", folder)(request) for request in requests]
        assert list(expected[0]) == ["buy", "topic", "mood"]
        same(run_alone("decision", loaded("decision", folder), requests, {}), expected)
        same(batched_with_strangers("decision", folder, requests, {}, shares=False), expected)

    def test_a_model_that_sees_is_shown_the_images(self, tiny_folder: Folder) -> None:
        folder = tiny_folder("tiny-llava")
        task = loaded("decision", folder)
        found = []
        for picture in samples.images()[:2]:
            request = samples.decision("look at img-1")
            expected = library("decision", folder)({**request, "assets": {"img-1": picture}})
            sent = {**request, "assets": {"img-1": base64.b64encode(samples.png(picture)).decode()}}
            found += run_alone("decision", task, [sent], {})
            same(found[-1], expected)
        assert found[0] != found[1]

    def test_images_are_refused_by_a_model_that_sees_none(self, tiny_folder: Folder) -> None:
        jobs = Jobs("decision", loaded("decision", tiny_folder("tiny-llama")))
        with pytest.raises(InvalidRequest, match="the model sees no images") as refusal:
            jobs.submit({**samples.decision(), "assets": {"img-1": "aGk="}}, {})
        assert refusal.value.param == "inputs[0].assets"

    def test_more_options_than_labels_are_refused(self, tiny_folder: Folder) -> None:
        jobs = Jobs("decision", loaded("decision", tiny_folder("tiny-llama")))
        options = {str(number): None for number in range(27)}
        question = {"type": "choice", "criteria": options}
        with pytest.raises(InvalidRequest, match=r"inputs\[0\] cannot be used: Question 'a': .*at most 26 options"):
            jobs.submit({"state": "yes", "questions": {"a": question}}, {})


def test_a_bad_input_fails_alone_in_its_job_and_among_strangers(tiny_folder: Folder) -> None:
    folder = tiny_folder("tiny-tapas")
    jobs = Jobs("table-question-answering", loaded("table-question-answering", folder))
    small, *_, large = TestTableQuestionAnswering.inputs
    jobs.submit([large, small], {"truncation": False}, keep_errors=True)
    with pytest.raises(PromptTooLong, match=r"inputs\[1\]"):
        jobs.submit([small, large], {"truncation": False})
    jobs.submit(small, {})
    (error, kept), (row,) = jobs.run()
    assert isinstance(error, PromptTooLong)
    assert error.param == "inputs[0]"
    expected = library("table-question-answering", folder)(dict(small))
    same(kept, expected)
    same(row, expected)
