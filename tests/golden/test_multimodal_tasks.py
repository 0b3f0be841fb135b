"""Rows of tasks on several kinds of input are what the library's own call returns, alone and among strangers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tandem.errors import InvalidRequest, PromptTooLong
from tests.golden.media_jobs import Asked, same, sent
from tests.golden.media_jobs import MediaJobs as MediaJobs
from tests.golden.multimodal_inputs import (
    CHATS,
    DOCUMENTS,
    LONG_DOCUMENT,
    PROMPTS,
    SOUND_CHATS,
    SOUND_PROMPTS,
    TALL,
    WIDE,
    WRITE,
    as_sent,
    by_the_library,
)
from tests.tiny_models import samples

Loaded = Callable[[str, str], MediaJobs]


@pytest.fixture(scope="module")
def loaded(tiny_folder: Callable[[str], Path]) -> Loaded:
    """Each task on each model, once."""
    return cache(lambda task, model: MediaJobs(task, tiny_folder(model)))


QUESTIONS = [
    {"image": image, "question": question} for image in (WIDE, TALL) for question in ("yes", samples.QUESTIONS[0])
]


@dataclass(frozen=True)
class Case:
    """One task on one model, with one set of parameters."""

    task: str
    model: str
    inputs: list[Any]
    parameters: dict[str, Any] = field(default_factory=dict)
    forwards: int = 1
    """For all inputs twice, in a job each and in one job together, submitted at once."""

    def __str__(self) -> str:
        return "-".join([self.task, self.model, *self.parameters])


SEARCH = {"generation_parameters": {"max_new_tokens": 8, "num_beams": 2, "num_return_sequences": 2}}
DOCUMENT_QUESTIONS = "document-question-answering"
CASES = (
    Case(DOCUMENT_QUESTIONS, "tiny-layoutlm", [*DOCUMENTS, LONG_DOCUMENT]),
    Case(
        DOCUMENT_QUESTIONS,
        "tiny-layoutlm",
        [*DOCUMENTS, LONG_DOCUMENT],
        {"top_k": 3, "doc_stride": 10, "max_seq_len": 60, "max_answer_len": 4, "handle_impossible_answer": True},
    ),
    # Six runs of three pages: the library cannot put Donut's answers of a batch together.
    Case(DOCUMENT_QUESTIONS, "tiny-donut", [{**page, "word_boxes": None} for page in DOCUMENTS], forwards=6),
    # Images of two sizes.
    Case("visual-question-answering", "tiny-vilt", QUESTIONS, {"top_k": 3}, forwards=2),
    # With an image, and without one.
    Case("image-text-to-text", "tiny-llava", CHATS, WRITE, forwards=2),
    Case("image-text-to-text", "tiny-llava", CHATS, {**WRITE, "return_full_text": False}, forwards=2),
    Case("image-text-to-text", "tiny-llava", CHATS, {**WRITE, "stop_sequence": "the"}, forwards=2),
    # With one image, with two, and without one.
    Case("image-text-to-text", "tiny-llava", PROMPTS, SEARCH, forwards=3),
    # With one sound, and with two.
    Case("any-to-any", "tiny-qwen2-audio", SOUND_CHATS, WRITE, forwards=2),
    Case("any-to-any", "tiny-qwen2-audio", SOUND_PROMPTS, {**WRITE, "return_full_text": False}, forwards=2),
    Case("any-to-any", "tiny-qwen2-audio", SOUND_PROMPTS, {**SEARCH, "generation_mode": "text"}, forwards=2),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_are_the_librarys_alone_and_among_strangers(case: Case, loaded: Loaded) -> None:
    jobs = loaded(case.task, case.model)
    expected = [by_the_library(jobs, value, case.parameters) for value in case.inputs]
    assert len({str(row) for row in expected}) == len(expected), "the tiny model tells its inputs apart"
    inputs = as_sent(case.inputs)
    for value, row in zip(inputs, expected, strict=True):
        [[alone]] = jobs.run(Asked(value, case.parameters))
        same(alone, row)
    *singles, together = jobs.run(
        *(Asked(value, case.parameters) for value in inputs), Asked(inputs, case.parameters)
    )
    assert jobs.forwards == case.forwards
    same(together, expected)
    same([row for [row] in singles], expected)


class TestImageToText:
    """transformers dropped it: what its version 4 returned is spelt out here with the model's own `generate()`."""

    @pytest.mark.parametrize(
        ("parameters", "options"),
        [
            ({"max_new_tokens": 6}, {"max_new_tokens": 6}),
            (SEARCH, SEARCH["generation_parameters"]),
        ],
        ids=str,
    )
    def test_gives_what_the_model_generates(
        self, parameters: dict[str, Any], options: dict[str, Any], loaded: Loaded
    ) -> None:
        jobs = loaded("image-to-text", "tiny-donut")
        expected = []
        for image in samples.images():
            pixels = jobs.pipeline.image_processor(image, return_tensors="pt").pixel_values
            written = jobs.pipeline.model.generate(pixels, **options)
            texts = jobs.pipeline.tokenizer.batch_decode(written, skip_special_tokens=True)
            expected.append([{"generated_text": text} for text in texts])
        files = sent(samples.images())
        *singles, together = jobs.run(*(Asked(file, parameters) for file in files), Asked(files, parameters))
        assert jobs.forwards == 1
        same(together, expected)
        same([row for [row] in singles], expected)

    def test_a_prompt_is_how_the_text_begins(self, loaded: Loaded) -> None:
        jobs = loaded("image-to-text", "tiny-llava")
        tokenizer, model = jobs.pipeline.tokenizer, jobs.pipeline.model
        # One mark a patch, as LLaVA's processor would write them.
        prompt = "<image>" * 16 + " the sea"
        pixels = jobs.pipeline.image_processor(WIDE, return_tensors="pt").pixel_values
        written = model.generate(**tokenizer(prompt, return_tensors="pt"), pixel_values=pixels, max_new_tokens=5)
        [[row]] = jobs.run(Asked(sent(WIDE), {"prompt": prompt, "max_new_tokens": 5}))
        assert row == [{"generated_text": tokenizer.decode(written[0], skip_special_tokens=True)}]
        assert row[0]["generated_text"].startswith(" the sea")

    def test_a_model_that_takes_no_prompt_says_so(self, loaded: Loaded) -> None:
        [error] = loaded("image-to-text", "tiny-donut").run(Asked(sent(WIDE), {"prompt": "the sea"}))
        with pytest.raises(InvalidRequest, match=r"inputs\[0\] cannot be used: .* leave out the prompt"):
            raise error

    def test_more_than_the_model_has_places_for_is_refused(self, loaded: Loaded) -> None:
        """On a GPU it would end the worker's process."""
        [error] = loaded("image-to-text", "tiny-donut").run(Asked(sent(WIDE), {"max_new_tokens": 129}))
        assert isinstance(error, PromptTooLong)
        assert "129 may be written; the model holds 128 together" in error.message


class TestVisualQuestions:
    def test_a_question_longer_than_the_model_is_refused_or_cut(self, loaded: Loaded) -> None:
        jobs = loaded("visual-question-answering", "tiny-vilt")
        long = {"image": WIDE, "question": " ".join(samples.SENTENCES * 3)}
        [error] = jobs.run(Asked(as_sent(long)))
        assert isinstance(error, PromptTooLong)
        assert error.param == "inputs[0].question"
        [[row]] = jobs.run(Asked(as_sent(long), {"truncation": True}))
        same(row, by_the_library(jobs, long, {"truncation": True}))
