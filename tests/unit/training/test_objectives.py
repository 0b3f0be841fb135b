"""What rows become for the tasks with a head: which token carries which label, and what is cut."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tandem.errors import InvalidTrainingData
from tandem.specs.finetune import FineTuneTask
from tandem.specs.training_rows import TextClassificationRow, TokenClassificationRow, TrainingRow
from tests.unit.training.tiny import chat
from tests.unit.training.tiny_encoders import (
    POSITIONS,
    ROWS,
    TOKENIZERS,
    question,
    question_rows,
    tagged_rows,
    text_rows,
    tiny_body,
)
from worker.training.data import EncodedData, Example
from worker.training.objectives import HeadedObjective, objective_for
from worker.training.objectives.question_answering import EncodedQuestions

FAMILIES = ("bert", "roberta")


def objective(
    task: FineTuneTask, family: str = "bert", max_tokens: int = 1024, rows: Sequence[TrainingRow] | None = None
) -> HeadedObjective:
    made = objective_for(task, tiny_body(family), TOKENIZERS[family], max_tokens, rows or ROWS[task]())
    assert isinstance(made, HeadedObjective)
    return made


def pieces(family: str, example: Example) -> list[str]:
    return TOKENIZERS[family].convert_ids_to_tokens(list(example.input_ids))


def test_a_text_is_learned_as_its_label() -> None:
    """Labels are numbered in the order of their names; the text is tokenized as it is when it is served."""
    data = objective("text-classification").encode(text_rows())
    assert data.labels == ("animals", "money", "weather")
    assert [example.labels for example in data.examples] == [(n,) for n in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    served = TOKENIZERS["bert"]("the cat sat on the mat")
    assert list(data.examples[0].input_ids) == served["input_ids"]
    assert list(data.examples[0].token_type_ids or ()) == served["token_type_ids"]


def test_labels_that_are_numbers_are_in_their_order() -> None:
    rows = [TextClassificationRow.model_validate({"text": "rain", "label": label}) for label in (10, 9, "0")]
    assert objective("text-classification", rows=rows).encode(rows).labels == ("0", "9", "10")


def test_a_pair_of_texts_is_told_apart() -> None:
    rows = [
        TextClassificationRow(text="the cat", text_pair="the dog", label="other"),
        TextClassificationRow(text="the cat", text_pair="the cat", label="same"),
    ]
    first = objective("text-classification", rows=rows).encode(rows).examples[0]
    assert pieces("bert", first) == ["[CLS]", "the", "cat", "[SEP]", "the", "dog", "[SEP]"]
    assert first.token_type_ids == (0, 0, 0, 0, 1, 1, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_are_cut_at_the_models_context(family: str) -> None:
    """RoBERTa's table of positions has entries that no token gets."""
    rows: list[TrainingRow] = [*text_rows(), TextClassificationRow(text="cat " * 300, label="animals")]
    data = objective("text-classification", family).encode(rows)
    ids = data.examples[-1].input_ids
    assert len(ids) == POSITIONS
    assert ids[-1] == TOKENIZERS[family].sep_token_id
    assert data.report.truncated_rows == 1
    assert data.report.rows == data.report.answer_tokens == 10
    assert data.report.tokens == sum(len(example.input_ids) for example in data.examples)
    assert data.report.longest_tokens == POSITIONS
    assert data.report.dropped_rows == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_words_tag_is_on_its_first_token(family: str) -> None:
    """The tokens after it, and those around the sentence, carry no loss."""
    tagging = objective("token-classification", family)
    row = TokenClassificationRow(tokens=("unheard", "Anna", "in", "Ulm"), tags=("O", "B-PER", "O", "B-LOC"))
    (example,) = tagging.encode([row]).examples
    labelled = [
        (piece, tagging.head.labels[label])
        for piece, label in zip(pieces(family, example), example.labels, strict=True)
        if label != -100
    ]
    assert [tag for _, tag in labelled] == ["O", "B-PER", "O", "B-LOC"]
    assert [piece for piece, _ in labelled] == (
        ["u", "anna", "in", "u"] if family == "bert" else ["u", "ĠAnna", "Ġin", "U"]
    )
    assert len(example.labels) > len(labelled) + 2, "the other words are spelt out"


def test_split_words_are_tokenized_as_the_librarys_own_way_does() -> None:
    for row, example in zip(
        tagged_rows(), objective("token-classification").encode(tagged_rows()).examples, strict=True
    ):
        assert isinstance(row, TokenClassificationRow)
        own = TOKENIZERS["bert"](list(row.tokens), is_split_into_words=True)
        words = own.word_ids()
        assert list(example.input_ids) == own["input_ids"]
        firsts = [word is not None and word != before for before, word in zip([None, *words], words, strict=False)]
        assert [label != -100 for label in example.labels] == firsts


def test_words_beyond_the_limit_carry_no_label() -> None:
    rows: list[TrainingRow] = [*tagged_rows(), TokenClassificationRow(tokens=("cat",) * 40, tags=("O",) * 40)]
    data = objective("token-classification", max_tokens=16).encode(rows)
    assert sum(label != -100 for label in data.examples[-1].labels) == 14
    assert data.report.truncated_rows == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_its_first_and_last_token(family: str) -> None:
    """Characters, whatever the tokenizer makes of the space before a word; no answer points at the first token."""
    data = objective("question-answering", family).encode(question_rows())
    assert isinstance(data, EncodedQuestions)
    found = [answer_text(data, number) for number in range(4)]
    assert found == ["the cat", "Anna Smith", "the sea", None]
    assert data.examples[3].labels == (0, 0)
    assert data.report.answer_tokens == 8


def answer_text(data: EncodedQuestions, number: int) -> str | None:
    """What an example's labels point at in its row's context; None where they point at the first token."""
    (first, last), window = data.examples[number].labels, data.windows[number]
    start, end = window.offsets[first], window.offsets[last]
    if start is None or end is None:
        return None
    return data.rows[window.row].context[start[0] : end[1]]


def test_a_long_context_is_learned_in_windows_that_overlap() -> None:
    """The answer is far beyond the limit of tokens: the windows that hold it learn it, the others that it is not
    there. No character of the context is in no window."""
    context = "the cat sat on the mat , " * 20 + "Anna Smith works at the bank"
    rows = [question("who works", context, "Anna Smith")]
    data = objective("question-answering", max_tokens=64, rows=rows).encode(rows)
    assert isinstance(data, EncodedQuestions)
    assert data.report.truncated_rows == 1
    assert data.report.dropped_rows == 0
    assert len(data.examples) > 3
    assert all(len(example.input_ids) <= 64 for example in data.examples)
    answers = [answer_text(data, number) for number in range(len(data.examples))]
    assert "Anna Smith" in answers
    assert set(answers) == {None, "Anna Smith"}
    seen = {place for window in data.windows for at in window.offsets if at for place in range(*at)}
    assert seen == {place for place, character in enumerate(context) if character != " "}


def test_an_answer_longer_than_every_window_is_dropped() -> None:
    """What is left of its row would teach that the context has no answer."""
    context = "the cat sat on the mat " * 20
    rows = [question("what", context, context.strip()), *question_rows()]
    data = objective("question-answering", max_tokens=32, rows=rows).encode(rows)
    assert isinstance(data, EncodedQuestions)
    assert data.report.dropped_rows == 1
    assert {window.row for window in data.windows} == {1, 2, 3, 4}


def test_a_question_that_leaves_no_room_is_refused_by_row() -> None:
    rows = [*question_rows(), question("who " * 60, "Anna", "Anna")]
    with pytest.raises(InvalidTrainingData, match="row 5: its question leaves no room for the context within 64"):
        objective("question-answering", max_tokens=64, rows=rows).encode(rows)


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_label_that_training_does_not_know_is_refused_by_row(task: FineTuneTask) -> None:
    new = {"text": "rain", "label": "sports", "tokens": ["rain"], "tags": ["sports"]}
    names = ("text", "label") if task == "text-classification" else ("tokens", "tags")
    shape = TextClassificationRow if task == "text-classification" else TokenClassificationRow
    rows = [ROWS[task]()[0], shape.model_validate({name: new[name] for name in names})]
    with pytest.raises(InvalidTrainingData, match="row 2: no row of the training file has the label") as raised:
        objective(task).encode(rows, param="validation_file")
    assert raised.value.param == "validation_file"


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_another_tasks_row_is_refused(task: FineTuneTask) -> None:
    with pytest.raises(InvalidTrainingData, match=f"row 2: a row for {task} is"):
        objective(task).encode([ROWS[task]()[0], chat("red", "stop")])


def test_batches_are_padded_by_the_models_own_padding() -> None:
    """RoBERTa finds its positions by that id; labels of tokens are padded with -100."""
    tagging = objective("token-classification", "roberta")
    batch = tagging.collate(tagging.encode(tagged_rows()).examples)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert torch.equal(batch["input_ids"] == TOKENIZERS["roberta"].pad_token_id, batch["attention_mask"] == 0)
    assert torch.all(batch["labels"][batch["attention_mask"] == 0] == -100)


def test_encoding_leaves_the_residents_tokenizer_alone() -> None:
    """Serving threads tokenize with it meanwhile; a limit set by training would cut their texts."""
    tokenizer = TOKENIZERS["bert"]
    tokenizer("warm")
    long = "cat " * 300

    def serve() -> set[int]:
        return {len(tokenizer(long, verbose=False)["input_ids"]) for _ in range(50)}

    def train() -> EncodedData:
        return objective("question-answering", max_tokens=32).encode(question_rows() * 50)

    with ThreadPoolExecutor(2) as pool:
        training, serving = pool.submit(train), pool.submit(serve)
        training.result(60)
        assert serving.result(60) == {302}
    backend: Any = tokenizer.backend_tokenizer
    assert backend.truncation is None
