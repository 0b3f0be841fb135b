"""question-answering against the same numbers by plain loops over the model's logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaConfig, RobertaForQuestionAnswering
from transformers.pipelines.base import pad_collate_fn

from tests.tiny_models import samples
from tests.tiny_models.text import ENCODER
from tests.tiny_models.tokenizers import MAX_TOKENS, bart_pieces
from tests.tiny_models.weights import redraw
from worker.pipelines.question_answering import QuestionAnsweringPipeline

Pipelines = Callable[[str, str], Any]

LONG = " ".join(samples.SENTENCES)
"""Longer than the tiny models' windows."""
CONTEXTS = (samples.SENTENCES[3], LONG, "yes", samples.SENTENCES[8], LONG[40:])
INPUTS = [{"question": samples.QUESTIONS[place % 3], "context": context} for place, context in enumerate(CONTEXTS)]
WINDOWS = {"max_seq_len": 40, "doc_stride": 8}


@pytest.fixture(scope="module")
def bert(tiny_pipeline: Pipelines) -> Any:
    return tiny_pipeline("question-answering", "tiny-bert-answers")


def roberta(*, padding_side: str = "right") -> Any:
    """Tiny and random, with a byte-level BPE whose words begin with a space."""
    tokenizer: Any = bart_pieces()
    tokenizer.padding_side = padding_side
    config = RobertaConfig(
        **ENCODER,
        vocab_size=len(tokenizer),
        # Positions are counted from the one after the padding id.
        max_position_embeddings=MAX_TOKENS + tokenizer.pad_token_id + 1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = RobertaForQuestionAnswering(config)
    redraw(model, 0)
    cpu = torch.device("cpu")
    return QuestionAnsweringPipeline(model=model.eval(), tokenizer=tokenizer, task="question-answering", device=cpu)


def by_hand(
    pipe: Any, asked: dict[str, str], *, tokens: int, stride: int, longest: int = 15
) -> tuple[list[tuple[float, int, int]], float]:
    """Every span of tokens in every window as (score, start, end), the best first, and the score of no answer.

    Windows are cut here, out of the context's tokens; each reads `[CLS] question [SEP] context [SEP]`.
    """
    tokenizer = pipe.tokenizer
    question = tokenizer(asked["question"], add_special_tokens=False).input_ids
    read = tokenizer(asked["context"], add_special_tokens=False, return_offsets_mapping=True)
    head = [tokenizer.cls_token_id, *question, tokenizer.sep_token_id]
    room = tokens - len(head) - 1
    spans: dict[tuple[int, int], float] = {}
    nothing = []
    for at in range(0, len(read.input_ids), room - stride):
        part = read.input_ids[at : at + room]
        ids = torch.tensor([[*head, *part, tokenizer.sep_token_id]])
        kinds = torch.tensor([[0] * len(head) + [1] * (len(part) + 1)])
        with torch.inference_mode():
            output = pipe.model(input_ids=ids, token_type_ids=kinds)
        kept = [0, *range(len(head), len(head) + len(part))]
        starts = output.start_logits[0, kept].softmax(0).tolist()
        ends = output.end_logits[0, kept].softmax(0).tolist()
        nothing.append(starts[0] * ends[0])
        for first in range(len(part)):
            for last in range(first, min(first + longest, len(part))):
                place = (read.offset_mapping[at + first][0], read.offset_mapping[at + last][1])
                spans[place] = max(spans.get(place, 0.0), starts[first + 1] * ends[last + 1])
        if at + room >= len(read.input_ids):
            break
    return sorted(((score, *place) for place, score in spans.items()), reverse=True), min(nothing)


def close(found: Any, expected: Any) -> None:
    """Asserts that answers are the same, and their scores to rounding."""
    found, expected = ([item] if isinstance(item, dict) else item for item in (found, expected))
    assert [item["answer"] for item in found] == [item["answer"] for item in expected]
    assert [(item["start"], item["end"]) for item in found] == [(item["start"], item["end"]) for item in expected]
    assert [item["score"] for item in found] == pytest.approx([item["score"] for item in expected], abs=1e-5)


@pytest.mark.parametrize("given_", INPUTS, ids=lambda value: value["context"][:12])
def test_scores_are_the_product_of_both_probabilities_in_a_window(bert: Any, given_: dict[str, str]) -> None:
    """Softmax over the context's tokens and [CLS], the best window for each span, spans of up to 15 tokens."""
    expected, _ = by_hand(bert, given_, tokens=40, stride=8)
    found = bert(given_, **WINDOWS, top_k=4, align_to_words=False)
    top = expected[: len(found)]
    assert len(found) == min(4, len(expected))
    assert [(answer["start"], answer["end"]) for answer in found] == [(start, end) for _, start, end in top]
    assert [answer["score"] for answer in found] == pytest.approx([score for score, _, _ in top], abs=1e-5)


def test_answers_come_from_any_window(bert: Any) -> None:
    """Over a long context the best spans of some questions begin where the first window does not reach."""
    reached = len(samples.SENTENCES[0] + samples.SENTENCES[1] + samples.SENTENCES[2] + samples.SENTENCES[3])
    starts = [bert({"question": question, "context": LONG}, **WINDOWS)["start"] for question in samples.QUESTIONS]
    assert max(starts) > reached


def test_answers_are_as_short_as_asked(bert: Any) -> None:
    expected, _ = by_hand(bert, INPUTS[0], tokens=128, stride=0, longest=2)
    found = bert(INPUTS[0], max_answer_len=2, align_to_words=False)
    assert (found["start"], found["end"]) == expected[0][1:]
    assert found["score"] == pytest.approx(expected[0][0], abs=1e-5)


def test_no_answer_competes_by_the_probability_of_its_token(bert: Any) -> None:
    """Its score is the lowest that a window gives to [CLS]; without the parameter it is never an answer."""
    _, nothing = by_hand(bert, INPUTS[1], tokens=40, stride=8)
    found = bert(INPUTS[1], **WINDOWS, handle_impossible_answer=True, top_k=5000)
    (empty,) = [answer for answer in found if not answer["answer"]]
    assert (empty["start"], empty["end"]) == (0, 0)
    assert empty["score"] == pytest.approx(nothing, abs=1e-5)
    assert all(answer["answer"] for answer in bert(INPUTS[1], **WINDOWS, top_k=5000))


def test_no_answer_wins_where_the_model_is_sure_of_it() -> None:
    """A head that points at the first token alone."""
    pipe = roberta()
    with torch.no_grad():
        pipe.model.qa_outputs.weight.zero_()
    logits = pipe.model.qa_outputs.register_forward_hook(
        lambda _module, _inputs, output: output + 50 * (torch.arange(output.shape[1]) == 0)[None, :, None]
    )
    try:
        sure = pipe(INPUTS[0], handle_impossible_answer=True)
        assert sure == {"score": pytest.approx(1.0), "start": 0, "end": 0, "answer": ""}
        assert pipe(INPUTS[0])["answer"] != ""
    finally:
        logits.remove()


def test_one_answer_is_a_dict_and_several_a_list(bert: Any) -> None:
    assert set(bert(INPUTS[0])) == {"score", "start", "end", "answer"}
    several = bert(INPUTS[0], top_k=3)
    assert [type(answer) for answer in several] == [dict] * 3
    assert several[0] == bert(INPUTS[0], top_k=1)
    assert sorted((answer["score"] for answer in several), reverse=True) == [answer["score"] for answer in several]
    # A context of one word has one answer.
    assert isinstance(bert(INPUTS[2], top_k=3), list)


def test_answers_are_whole_words_unless_asked_otherwise() -> None:
    """The unknown word is spelt out in bytes: aligned, its pieces are one answer."""
    pipe = roberta()
    context = "zyxwvu the sea qponm"
    whole = {answer["answer"] for answer in pipe({"question": "who?", "context": context}, top_k=50)}
    assert {"zyxwvu", "qponm"} <= whole
    assert all(f" {answer} " in f" {context} " for answer in whole)
    pieces = pipe({"question": "who?", "context": context}, top_k=50, align_to_words=False)
    assert any(f" {answer['answer']} " not in f" {context} " for answer in pieces)


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize(
    "parameters",
    [{}, {**WINDOWS, "top_k": 3}, {"handle_impossible_answer": True, "top_k": 2, "align_to_words": False}],
    ids=str,
)
def test_a_batch_gives_what_each_gives_alone(padding_side: str, parameters: dict[str, Any]) -> None:
    """Windows of several rows share a batch, padded at the right or the left."""
    pipe = roberta(padding_side=padding_side)
    alone = [pipe(dict(value), **parameters) for value in INPUTS]
    for one, batched in zip(alone, pipe(INPUTS, batch_size=4, **parameters), strict=True):
        close(batched, one)


def test_windows_of_several_rows_may_be_collated_by_hand(bert: Any) -> None:
    """As a worker does it: preprocess, the library's padding, forward, postprocess."""
    (short,), (*windows,) = (list(bert.preprocess(value, **WINDOWS)) for value in INPUTS[:2])
    assert [window["is_last"] for window in windows] == [False] * (len(windows) - 1) + [True]
    batch = pad_collate_fn(bert.tokenizer, None)([short, windows[-1]])
    output = bert.forward(batch)
    assert output["start"].shape == batch["input_ids"].shape
    row = {name: value[:1] if isinstance(value, torch.Tensor) else value[0] for name, value in output.items()}
    close(bert.postprocess([row]), bert(INPUTS[0], **WINDOWS))


def test_padding_to_the_windows_length_changes_nothing() -> None:
    for side in ("right", "left"):
        pipe = roberta(padding_side=side)
        close(pipe(INPUTS[1], **WINDOWS, padding="max_length"), pipe(INPUTS[1], **WINDOWS))


@settings(max_examples=40, deadline=None)
@given(
    context=st.text(alphabet=st.sampled_from("ab the séa \n\t漢字.,-\u200d😀Ñ"), min_size=1, max_size=300),
    stride=st.integers(0, 12),
    align=st.booleans(),
)
def test_every_answer_is_the_stretch_of_the_context_that_it_names(
    bert_and_roberta: list[Any], context: str, stride: int, align: bool
) -> None:
    """Whatever the text, the overlap and the tokenizer."""
    if not context.strip():
        return
    asked = {"question": samples.QUESTIONS[1], "context": context}
    for pipe in bert_and_roberta:
        answers = pipe(asked, max_seq_len=48, doc_stride=stride, top_k=7, align_to_words=align)
        assert all(0 <= answer["start"] <= answer["end"] <= len(context) for answer in answers)
        assert all(context[answer["start"] : answer["end"]] == answer["answer"] for answer in answers)
        assert all(0.0 <= answer["score"] <= 1.0 + 1e-6 for answer in answers)


@pytest.fixture(scope="module")
def bert_and_roberta(bert: Any) -> list[Any]:
    return [bert, roberta(), roberta(padding_side="left")]


def test_question_and_context_may_be_arguments(bert: Any) -> None:
    close(bert(**INPUTS[0]), bert(INPUTS[0]))


@pytest.mark.parametrize("name", ["question", "context"])
@pytest.mark.parametrize("blank", ["", " \n"])
def test_blank_texts_are_refused(bert: Any, name: str, blank: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` cannot be empty"):
        bert({**INPUTS[0], name: blank})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"max_answer_len": 0}, "max_answer_len must be at least 1, not 0"),
        ({"max_seq_len": 40, "doc_stride": 39}, "doc_stride"),
        ({"max_seq_len": 8}, "max_seq_len"),
    ],
    ids=str,
)
def test_parameters_without_sense_are_refused_by_name(bert: Any, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bert(INPUTS[1], **parameters)


def test_unknown_parameters_are_refused_by_name(bert: Any) -> None:
    with pytest.raises(TypeError, match="question-answering has no parameter max_answer_length"):
        bert(INPUTS[1], max_answer_length=3)


def test_a_long_question_is_cut_where_asked(bert: Any) -> None:
    """Otherwise it takes the room of the context."""
    question = samples.QUESTIONS[0] + " " + LONG
    cut = bert.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True).offset_mapping[5][1]
    found = bert({"question": question, "context": LONG}, max_question_len=6)
    close(found, bert({"question": question[:cut], "context": LONG}))


def test_a_short_context_takes_any_stride(bert: Any) -> None:
    """One window holds it, so windows need not move on."""
    close(bert(INPUTS[2], max_seq_len=40, doc_stride=39), bert(INPUTS[2]))
