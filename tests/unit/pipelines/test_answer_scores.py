"""question-answering: what becomes of given logits, over the real windows of a real tokenizer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.tiny_models.samples import QUESTIONS, SENTENCES
from worker.pipelines.question_answering import QuestionAnsweringPipeline

LONG = " ".join(SENTENCES)
QUESTION = QUESTIONS[0]
SURE = 9.0
"""A logit that takes nearly all of the probability from zeros."""


@pytest.fixture
def pipe(tiny_pipeline: Callable[[str, str], Any]) -> QuestionAnsweringPipeline:
    made: QuestionAnsweringPipeline = tiny_pipeline("question-answering", "tiny-bert-answers")
    return made


def windows(pipe: QuestionAnsweringPipeline, context: str, **parameters: Any) -> list[dict[str, Any]]:
    """The windows of a context, with all logits 0, as the forward would hand them on."""
    made = list(pipe.preprocess({"question": QUESTION, "context": context}, **parameters))
    for window in made:
        window["start"], window["end"] = (
            torch.zeros(window["input_ids"].shape),
            torch.zeros(window["input_ids"].shape),
        )
    return made


def set_logit(window: dict[str, Any], token: int, logit: float) -> None:
    window["start"][0, token] = window["end"][0, token] = logit


def probability(window: dict[str, Any], token: int) -> float:
    """That the answer begins at this token, among the context's and [CLS]."""
    logits = window["start"][0]
    rivals = [place for place, outside in enumerate(window["p_mask"][0].tolist()) if not outside]
    return float(logits[[0, *rivals]].softmax(0)[[0, *rivals].index(token)])


def test_stretches_of_tokens_within_the_same_words_add_up(pipe: QuestionAnsweringPipeline) -> None:
    """A word of five pieces has 15 stretches, which all widen to it; the best 12 count, as in version 4."""
    (window,) = windows(pipe, "zebra")
    pieces = window["p_mask"][0].tolist().count(0)
    assert pieces == 5
    assert pipe.postprocess([window])["score"] == pytest.approx(12 / (pieces + 1) ** 2)


def test_a_span_of_two_windows_has_the_better_score(pipe: QuestionAnsweringPipeline) -> None:
    """Symptom in version 4: the sum of both, above 1 where both are sure."""
    first, second, *_ = windows(pipe, LONG, max_seq_len=40, doc_stride=8)
    spans = {
        first["window"].offsets[place]: place for place, out in enumerate(first["p_mask"][0].tolist()) if not out
    }
    shared, there = next(
        (spans[span], place)
        for place, span in enumerate(second["window"].offsets)
        if not second["p_mask"][0, place] and span in spans
    )
    set_logit(first, shared, SURE)
    set_logit(second, there, SURE - 1)
    found = pipe.postprocess([first, second], align_to_words=False)
    assert (found["start"], found["end"]) == first["window"].offsets[shared]
    assert found["score"] == pytest.approx(probability(first, shared) ** 2)


def test_no_answer_is_as_likely_as_in_the_window_that_denies_it_most(pipe: QuestionAnsweringPipeline) -> None:
    """The context has no answer only if no window has one, in whatever order they come."""
    first, second, *_ = windows(pipe, LONG, max_seq_len=40, doc_stride=8)
    set_logit(second, 0, SURE)
    for order in ([first, second], [second, first]):
        found = pipe.postprocess(order, handle_impossible_answer=True, top_k=1000)
        (nothing,) = [answer for answer in found if not answer["answer"]]
        assert nothing["score"] == pytest.approx(probability(first, 0) ** 2)


def test_the_mark_of_no_answer_in_a_context_is_a_word_of_it(pipe: QuestionAnsweringPipeline) -> None:
    """A context that quotes `[CLS]` has the token's id in it; that says nothing of whether there is an answer."""
    (window,) = windows(pipe, "the sea [CLS] was calm")
    quoted = window["window"].ids.index(pipe.tokenizer.cls_token_id, 1)
    set_logit(window, quoted, SURE)
    found = pipe.postprocess([window], handle_impossible_answer=True, top_k=1000)
    assert found[0]["answer"] == "[CLS]"
    (nothing,) = [answer for answer in found if not answer["answer"]]
    assert nothing["score"] == pytest.approx(probability(window, 0) ** 2)


def test_without_any_likely_span_the_answer_is_empty(pipe: QuestionAnsweringPipeline) -> None:
    """Also where an empty answer was not asked for: a result always has its shape."""
    (window,) = windows(pipe, "the sea was calm")
    set_logit(window, 0, 1e6)
    assert pipe.postprocess([window]) == {"score": 1.0, "start": 0, "end": 0, "answer": ""}
    assert pipe.postprocess([window], top_k=3) == [{"score": 1.0, "start": 0, "end": 0, "answer": ""}]


def test_a_model_padded_at_the_left_reads_the_context_first(
    pipe: QuestionAnsweringPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As version 4 orders the two, and as such models (XLNet) were trained."""
    monkeypatch.setattr(pipe.tokenizer, "padding_side", "left")
    (window,) = windows(pipe, "the sea was calm")
    text = pipe.tokenizer.decode(window["input_ids"][0])
    assert text.index("the sea was calm") < text.index("[SEP]") < text.index("total price")


def test_the_overlap_shrinks_beside_a_long_question(pipe: QuestionAnsweringPipeline) -> None:
    """Symptom in version 4: an error of the tokenizer's, where the defaults left no room to go on."""
    question = " ".join(["sea"] * 100)
    found = pipe({"question": question, "context": LONG})
    assert LONG[found["start"] : found["end"]] == found["answer"] != ""
