"""The models of the tasks that transformers 5 dropped, through its Auto classes: their pipelines are our own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    AutoTokenizer,
)

from tests.tiny_models import TINY_MODELS, samples

CONTEXT = samples.SENTENCES[3]
WRITERS = [name for name, model in TINY_MODELS.items() if {"summarization", "translation"} & set(model.tasks)]


def test_questions_have_one_best_span(tiny_folder: Callable[[str], Path]) -> None:
    """The BERT with a question-answering head prefers one start and one end by a clear margin."""
    folder = str(tiny_folder("tiny-bert-answers"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    starts = set()
    for question in samples.QUESTIONS:
        with torch.inference_mode():
            output = model(**tokenizer(question, CONTEXT, return_tensors="pt"))
        for logits in (output.start_logits[0], output.end_logits[0]):
            best, second = logits.topk(2).values
            assert best - second > 1e-2
        starts.add(int(output.start_logits.argmax()))
    assert len(starts) > 1, "every question starts its answer at the same token"


@pytest.mark.parametrize("name", WRITERS)
def test_encoder_decoders_write_the_same_alone_and_padded(name: str, tiny_folder: Callable[[str], Path]) -> None:
    """Greedy generation of three texts in one padded batch writes what each text alone gets."""
    folder = str(tiny_folder(name))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    texts = [samples.SENTENCES[index] for index in (0, 2, 3)]
    alone = [write(model, tokenizer, [text])[0] for text in texts]
    assert write(model, tokenizer, texts) == alone
    assert len(set(alone)) == len(texts)


@pytest.mark.parametrize("name", ["tiny-llama", *WRITERS])
def test_greedy_choices_are_no_ties(name: str, tiny_folder: Callable[[str], Path]) -> None:
    """At every step the best token leads by more than float32 rounding could close, so that golden texts hold."""
    folder = str(tiny_folder(name))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    kind = AutoModelForCausalLM if name == "tiny-llama" else AutoModelForSeq2SeqLM
    model: Any = kind.from_pretrained(folder)
    for index in (0, 2, 3):
        inputs = tokenizer(samples.SENTENCES[index], return_tensors="pt")
        output = model.generate(**inputs, output_scores=True, return_dict_in_generate=True)
        for step in output.scores:
            best, second = step[0].topk(2).values
            assert best - second > 1e-3


def write(model: Any, tokenizer: Any, texts: list[str]) -> list[str]:
    """The texts that the model's saved defaults give, without special tokens."""
    rows = model.generate(**tokenizer(texts, return_tensors="pt", padding=True))
    written: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return written


def test_mbart_knows_languages(tiny_folder: Callable[[str], Path]) -> None:
    """Source and target language are tokens: another target writes another translation."""
    folder = str(tiny_folder("tiny-mbart"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    inputs = tokenizer._build_translation_inputs(
        samples.SENTENCES[0], return_tensors="pt", src_lang="en_XX", tgt_lang="de_DE"
    )
    assert inputs["forced_bos_token_id"] == tokenizer.convert_tokens_to_ids("de_DE")
    german = model.generate(**inputs)
    assert int(german[0, 1]) == tokenizer.convert_tokens_to_ids("de_DE")
    inputs["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids("ro_RO")
    assert model.generate(**inputs).tolist() != german.tolist()


def test_vilt_answers_about_pictures(tiny_folder: Callable[[str], Path]) -> None:
    """Its answers depend on the picture and on the question, and repeat to rounding.

    Not to the bit: ViLT shuffles a picture's patches by torch's global generator, and adds them up in that order.
    """
    folder = str(tiny_folder("tiny-vilt"))
    processor: Any = AutoProcessor.from_pretrained(folder)
    model = AutoModelForVisualQuestionAnswering.from_pretrained(folder)

    def scores(picture: Any, question: str) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model(**processor(picture, question, return_tensors="pt")).logits
        return logits

    wide, tall, _ = samples.images()
    first = scores(wide, samples.QUESTIONS[0])
    assert first.shape == (1, 6)
    assert torch.allclose(first, scores(wide, samples.QUESTIONS[0]), atol=1e-5)
    assert not torch.allclose(first, scores(tall, samples.QUESTIONS[0]), atol=1e-2)
    assert not torch.allclose(first, scores(wide, samples.QUESTIONS[1]), atol=1e-2)
