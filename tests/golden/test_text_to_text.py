"""Summaries, translations, other texts for texts, and answers out of a text: the pipelines that version 5 dropped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tandem.errors import Cancelled, InvalidRequest, PromptTooLong
from tests.golden.text_jobs import Jobs, library, loaded, run_alone, same
from tests.tiny_models import samples
from worker.tasks.text_to_text import TextToText

Folder = Callable[[str], Path]

TEXTS = list(samples.SENTENCES[:5])
LONG = " ".join(samples.SENTENCES * 3)
"""Longer than every tiny model."""


def together(task: str, folder: Path, inputs: list[Any], parameters: dict[str, Any]) -> list[Any]:
    """The row of each input, in a job of its own, and all in one forward."""
    jobs = Jobs(task, loaded(task, folder))
    for value in inputs:
        jobs.submit(value, parameters)
    rows = [row for (row,) in jobs.run()]
    assert jobs.forwards == 1
    return rows


class TestTextsForTexts:
    @pytest.mark.parametrize(
        ("task", "model"),
        [
            ("summarization", "tiny-t5"),
            ("summarization", "tiny-bart"),
            ("translation", "tiny-marian"),
            ("translation", "tiny-mbart"),
            ("text2text-generation", "tiny-t5"),
            ("text2text-generation", "tiny-bart"),
        ],
    )
    @pytest.mark.parametrize(
        "generate",
        [
            {},
            {"num_beams": 1, "max_new_tokens": 7},
            {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "no_repeat_ngram_size": 2},
        ],
        ids=str,
    )
    def test_are_the_librarys_alone_and_together(
        self, tiny_folder: Folder, task: str, model: str, generate: dict[str, Any]
    ) -> None:
        folder = tiny_folder(model)
        pipe = library(task, folder)
        expected = [pipe(text, **generate) for text in TEXTS]
        assert len({str(row) for row in expected}) > 2, "the tiny model tells texts apart"
        asked = {"generate_parameters": generate}
        same(run_alone(task, loaded(task, folder), TEXTS, asked), expected)
        same(together(task, folder, TEXTS, asked), expected)

    def test_sampled_texts_run_alone(self, tiny_folder: Folder) -> None:
        jobs = Jobs("summarization", loaded("summarization", tiny_folder("tiny-bart")))
        for text in TEXTS:
            jobs.submit(text, {"generate_parameters": {"do_sample": True, "num_beams": 1, "max_new_tokens": 3}})
        rows = jobs.run()
        assert jobs.forwards == len(TEXTS)
        assert all(isinstance(row[0]["summary_text"], str) for (row,) in rows)

    def test_other_parameters_run_apart(self, tiny_folder: Folder) -> None:
        folder = tiny_folder("tiny-bart")
        jobs = Jobs("summarization", loaded("summarization", folder))
        for tokens in (3, 5, 5):
            jobs.submit(TEXTS[0], {"generate_parameters": {"max_new_tokens": tokens}})
        rows = [row for (row,) in jobs.run()]
        assert jobs.forwards == 2
        pipe = library("summarization", folder)
        same(rows, [pipe(TEXTS[0], max_new_tokens=tokens) for tokens in (3, 5, 5)])

    def test_a_text_costs_its_tokens_and_those_to_be_written_for_each_beam(self, tiny_folder: Folder) -> None:
        task = loaded("summarization", tiny_folder("tiny-bart"))
        assert isinstance(task, TextToText)
        parameters = Jobs("summarization", task).spec("yes", {}).parameters
        ((piece,),) = task.encode(["yes"], parameters)
        # <s> yes </s>, 12 to be written (the model's own), 4 beams (the pipeline's own)
        assert len(piece) == (3 + 12) * 4

    @pytest.mark.parametrize("beams", [1, 3])
    def test_a_cancelled_job_leaves_its_neighbours_text_as_it_is(self, tiny_folder: Folder, beams: int) -> None:
        folder = tiny_folder("tiny-bart")
        generate = {"num_beams": beams, "max_new_tokens": 12}
        asked_at: list[int] = []
        task = loaded("summarization", folder)

        def should_stop() -> None:
            asked_at.append(len(asked_at))
            if len(asked_at) == 5:
                raise Cancelled

        jobs = Jobs("summarization", task)
        jobs.submit(TEXTS[0], {"generate_parameters": generate})
        jobs.submit(TEXTS[1], {"generate_parameters": generate}, should_stop=should_stop)
        jobs.submit(TEXTS[2], {"generate_parameters": generate})
        first, second, third = jobs.futures
        with pytest.raises(Cancelled):
            jobs.run()
        assert second.done()
        assert jobs.forwards == 1
        pipe = library("summarization", folder)
        same([first.result(0), third.result(0)], [[pipe(TEXTS[0], **generate)], [pipe(TEXTS[2], **generate)]])


class TestLanguages:
    def test_a_translation_named_by_its_languages_takes_the_models_prefix_for_them(self, tiny_folder: Folder) -> None:
        """T5 reads `translate English to French: ` before the text; its configuration says so."""
        folder = tiny_folder("tiny-t5")
        expected = [library("translation", folder)(text, src_lang="en", tgt_lang="fr") for text in TEXTS]
        plain = [library("text2text-generation", folder)("translate English to French: " + text) for text in TEXTS]
        assert [row[0]["translation_text"] for row in expected] == [row[0]["generated_text"] for row in plain]
        same(run_alone("translation_en_to_fr", loaded("translation", folder), TEXTS, {}), expected)

    def test_languages_that_the_model_has_not_are_refused_with_those_it_has(self, tiny_folder: Folder) -> None:
        jobs = Jobs("translation_en_to_de", loaded("translation", tiny_folder("tiny-t5")))
        with pytest.raises(InvalidRequest, match="no translation from 'en' to 'de'; it has translation_en_to_fr"):
            jobs.submit("yes", {})

    def test_codes_choose_the_languages_of_a_multilingual_model(self, tiny_folder: Folder) -> None:
        folder = tiny_folder("tiny-mbart")
        pipe = library("translation", folder)
        pairs = [("en_XX", "fr_XX"), ("en_XX", "de_DE"), ("de_DE", "fr_XX"), ("en_XX", "fr_XX")]
        jobs = Jobs("translation", loaded("translation", folder))
        for source, target in pairs:
            jobs.submit(TEXTS[0], {"src_lang": source, "tgt_lang": target})
        rows = [row for (row,) in jobs.run()]
        assert jobs.forwards == 2, "one a target language"
        same(rows, [pipe(TEXTS[0], src_lang=source, tgt_lang=target) for source, target in pairs])
        assert rows[0] != rows[1]


class TestLengths:
    def test_a_long_text_is_refused_or_cut(self, tiny_folder: Folder) -> None:
        folder = tiny_folder("tiny-bart")
        with pytest.raises(PromptTooLong, match=r"inputs\[1\] has \d+ tokens; the model takes 128"):
            Jobs("summarization", loaded("summarization", folder)).submit(["yes", LONG], {})
        cut = {"truncation": "longest_first"}
        expected = [library("summarization", folder)(LONG, truncation=True)]
        same(run_alone("summarization", loaded("summarization", folder), [LONG], cut), expected)

    def test_a_model_that_computes_positions_takes_any_text(self, tiny_folder: Folder) -> None:
        folder = tiny_folder("tiny-t5")
        expected = [library("summarization", folder)(LONG)]
        same(run_alone("summarization", loaded("summarization", folder), [LONG], {}), expected)

    def test_more_tokens_than_the_decoder_has_positions_are_refused(self, tiny_folder: Folder) -> None:
        jobs = Jobs("summarization", loaded("summarization", tiny_folder("tiny-bart")))
        with pytest.raises(InvalidRequest, match="writes up to 128 tokens, not 300") as refusal:
            jobs.submit("yes", {"generate_parameters": {"max_new_tokens": 300}})
        assert refusal.value.param == "parameters.generate_parameters.max_new_tokens"


class TestQuestionAnswering:
    inputs: ClassVar[list[dict[str, str]]] = [
        {"question": question, "context": context}
        for question, context in zip(
            samples.QUESTIONS, (samples.SENTENCES[8], LONG, samples.SENTENCES[3]), strict=True
        )
    ]

    @pytest.mark.parametrize(
        "parameters",
        [
            {},
            {"top_k": 3, "max_answer_len": 4},
            {"handle_impossible_answer": True, "top_k": 2},
            {"max_seq_len": 40, "doc_stride": 8, "max_question_len": 6, "align_to_words": False},
        ],
        ids=str,
    )
    def test_gives_the_librarys_answers(self, tiny_folder: Folder, parameters: dict[str, Any]) -> None:
        folder = tiny_folder("tiny-bert-answers")
        pipe = library("question-answering", folder)
        expected = [pipe(dict(given), **parameters) for given in self.inputs]
        task = loaded("question-answering", folder)
        same(run_alone("question-answering", task, self.inputs, parameters), expected)
        same(together("question-answering", folder, self.inputs, parameters), expected)

    def test_a_window_longer_than_the_model_is_refused(self, tiny_folder: Folder) -> None:
        jobs = Jobs("question-answering", loaded("question-answering", tiny_folder("tiny-bert-answers")))
        with pytest.raises(PromptTooLong, match=r"inputs\[0\] has \d+ tokens; the model takes 128"):
            jobs.submit(self.inputs[1], {"max_seq_len": 500})

    def test_a_blank_question_is_refused_by_name(self, tiny_folder: Folder) -> None:
        jobs = Jobs("question-answering", loaded("question-answering", tiny_folder("tiny-bert-answers")))
        with pytest.raises(InvalidRequest, match=r"inputs\[1\] cannot be used: `question` cannot be empty"):
            jobs.submit([self.inputs[0], {"question": " ", "context": "yes"}], {})
