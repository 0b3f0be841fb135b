"""Training files are checked line by line, and the error names the lines."""

import json

import pytest

from tandem import training_rows
from tandem.errors import InvalidTrainingData
from tandem.specs import ChatRow, CompletionRow
from tandem.specs.finetune import (
    FineTuneTask,
    QuestionAnsweringRow,
    TextClassificationRow,
    TokenClassificationRow,
)
from tandem.training_rows import check_rows, check_training_files, labels_of, read_rows

CHAT = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}'
COMPLETION = b'{"prompt": "2 + 2 =", "completion": " 4"}'


def test_both_shapes_are_read() -> None:
    rows = list(read_rows([CHAT + b"\n\n" + COMPLETION]))
    assert [type(row) for row in rows] == [ChatRow, CompletionRow]


def test_lines_may_be_cut_anywhere_by_the_stream() -> None:
    content = b"\n".join([CHAT, COMPLETION, CHAT])
    assert check_rows([content[start : start + 7] for start in range(0, len(content), 7)]) == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json", "is not JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"[1, 2]", "is not a JSON object"),
        (b'{"text": "plain"}', "must have either `messages`, or `prompt` and `completion`"),
        (b'{"prompt": "a"}', "`completion`: Field required"),
        (b'{"prompt": "a", "completion": ""}', "`completion`: String should have at least 1 character"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', "`messages`"),
        (
            b'{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}',
            "the last message must be the assistant's",
        ),
        (
            b'{"messages": [{"role": "x", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "`messages.0.role`",
        ),
    ],
)
def test_a_faulty_line_is_named_with_its_reason(line: bytes, reason: str) -> None:
    with pytest.raises(InvalidTrainingData) as caught:
        check_rows([CHAT + b"\n" + line + b"\n" + COMPLETION], param="validation_file")
    assert "line 2: " in caught.value.message
    assert reason in caught.value.message
    assert caught.value.param == "validation_file"


def test_many_faulty_lines_are_counted_and_the_first_shown() -> None:
    with pytest.raises(InvalidTrainingData) as caught:
        check_rows([b"\n".join([b"x"] * 40)])
    assert caught.value.message.startswith("`training_file` has 40 faulty lines: line 1: ")
    assert caught.value.message.endswith("(and 35 more lines)")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_data_set_is_refused_with_the_shape_to_send(content: bytes) -> None:
    with pytest.raises(InvalidTrainingData, match="has no rows; it must be JSON lines such as"):
        check_rows([content])


def test_a_file_without_line_ends_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_rows, "MAX_LINE_BYTES", 1000)
    endless = [json.dumps("x" * 300).encode()] * 100
    with pytest.raises(InvalidTrainingData, match="longer than the limit of 1000 bytes"):
        check_rows(endless)


# The tasks with a head of their own.

TEXT = b'{"text": "rain again", "label": "weather"}'
TAGGED = b'{"tokens": ["Ada", "sings"], "tags": ["B-PER", "O"]}'
QUESTION = b'{"question": "who?", "context": "Ada sings", "answers": {"text": ["Ada"], "answer_start": [0]}}'


def test_each_task_has_its_rows() -> None:
    """Fields that public data sets carry along (SQuAD's id and title, CoNLL's ner_tags) are taken as they are."""
    pair = b'{"text": "rain", "text_pair": "sun", "label": 3}'
    (text, both) = read_rows([TEXT + b"\n" + pair], "text-classification")
    assert text == TextClassificationRow(text="rain again", label="weather")
    assert both == TextClassificationRow(text="rain", text_pair="sun", label="3")

    conll = b'{"id": "7", "tokens": ["Ada", "sings"], "ner_tags": [1, 0]}'
    (tagged, numbered) = read_rows([TAGGED + b"\n" + conll], "token-classification")
    assert isinstance(tagged, TokenClassificationRow)
    assert isinstance(numbered, TokenClassificationRow)
    assert (tagged.tags, numbered.tags) == (("B-PER", "O"), ("1", "0"))

    squad = {"id": "56be", "title": "Ada", "question": "who?", "context": "Ada", "answers": {}}
    squad["answers"] = {"text": [], "answer_start": []}
    (asked, impossible) = read_rows([QUESTION + b"\n" + json.dumps(squad).encode()], "question-answering")
    assert isinstance(asked, QuestionAnsweringRow)
    assert isinstance(impossible, QuestionAnsweringRow)
    assert (asked.answers.text, impossible.answers.text) == (("Ada",), ())


@pytest.mark.parametrize(
    ("task", "line", "reason"),
    [
        ("text-classification", CHAT, "has no `text`; a row for text-classification is {"),
        ("token-classification", TEXT, "has no `tokens`; a row for token-classification is {"),
        ("question-answering", TAGGED, "has no `question`; a row for question-answering is {"),
        ("text-generation", TEXT, "must have either `messages`, or `prompt` and `completion`"),
        ("text-classification", b'{"text": "a"}', "`label`: Field required"),
        ("text-classification", b'{"text": "a", "label": true}', "`label`: Input should be a valid string"),
        ("text-classification", b'{"text": "", "label": "b"}', "`text`: String should have at least 1 character"),
        ("text-classification", b'{"text": "a", "label": "b", "labels": 1}', "`labels`: Extra inputs"),
        (
            "token-classification",
            b'{"tokens": ["a", "b"], "tags": ["O"]}',
            "`tags`: Value error, there must be one for each of the 2 tokens, and there are 1",
        ),
        ("token-classification", b'{"tokens": [], "tags": []}', "`tokens`: Tuple should have at least 1 item"),
        ("token-classification", b'{"tokens": ["a", 1], "tags": ["O", "O"]}', "`tokens.1`: Input should be"),
        (
            "question-answering",
            b'{"question": "a", "context": "Ada sings", "answers": {"text": ["Ada"], "answer_start": [1]}}',
            "`answers`: Value error, 'Ada' does not stand at character 1 of the context: 'da ' does",
        ),
        (
            "question-answering",
            b'{"question": "a", "context": "Ada sings", "answers": {"text": ["Ada"], "answer_start": []}}',
            "`answers.answer_start`: Value error, there must be one for each of the 1 texts",
        ),
        (
            "question-answering",
            b'{"question": "a", "context": "Ada sings", "answers": {"text": [" "], "answer_start": [3]}}',
            "an answer must have more than white space",
        ),
    ],
)
def test_a_row_of_another_shape_is_named_with_what_is_expected(task: FineTuneTask, line: bytes, reason: str) -> None:
    with pytest.raises(InvalidTrainingData) as caught:
        check_rows([line], task)
    assert "line 1: " in caught.value.message
    assert reason in caught.value.message


def test_labels_are_in_one_order_wherever_they_are_read() -> None:
    rows = [TextClassificationRow(text="a", label=label) for label in ("b", "a", "b", "C")]
    assert labels_of("text-classification", rows) == ("C", "a", "b")
    numbers = [TextClassificationRow(text="a", label=label) for label in ("10", "9", "01", "1")]
    assert labels_of("text-classification", numbers) == ("01", "1", "9", "10")
    tagged = list(read_rows([TAGGED], "token-classification"))
    assert labels_of("token-classification", tagged) == ("B-PER", "O")
    assert labels_of("question-answering", read_rows([QUESTION], "question-answering")) == ()


def test_a_file_with_one_label_is_refused() -> None:
    with pytest.raises(InvalidTrainingData, match="all rows have the label 'weather'") as caught:
        check_training_files("text-classification", [TEXT])
    assert caught.value.param == "training_file"


def test_labels_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's answers stand where labels should."""
    monkeypatch.setattr(training_rows, "MAX_LABELS", 3)
    rows = [TextClassificationRow(text="a", label=f"an answer, number {number}") for number in range(4)]
    with pytest.raises(InvalidTrainingData, match="more than 3 different labels; to learn texts, use text-gen"):
        labels_of("text-classification", rows)


def test_both_files_of_a_job_are_checked_together() -> None:
    """A validation row whose label no training row has could only ever be wrong."""
    training = [TEXT + b"\n" + TEXT.replace(b"weather", b"sports")]
    check_training_files("text-classification", training, [TEXT])
    with pytest.raises(InvalidTrainingData, match="row 2: no row of the training file has the label 'x'") as caught:
        check_training_files("text-classification", training, [TEXT + b"\n" + TEXT.replace(b"weather", b"x")])
    assert caught.value.param == "validation_file"
    with pytest.raises(InvalidTrainingData) as caught:
        check_training_files("text-generation", [CHAT], [TEXT])
    assert caught.value.param == "validation_file"
