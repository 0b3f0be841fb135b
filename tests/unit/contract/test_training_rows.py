"""Training files are checked line by line, and the error names the lines."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tandem import training_rows
from tandem.errors import InvalidTrainingData
from tandem.specs import ChatRow, CompletionRow
from tandem.specs.finetune import FineTuneTask
from tandem.specs.training_rows import (
    PreferenceRow,
    QuestionAnsweringRow,
    TextClassificationRow,
    TextRow,
    TextToTextRow,
    TokenClassificationRow,
)
from tandem.training_rows import LineError, RowFile, check_rows, check_training_files, labels_of, read_rows

CHAT = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}'
COMPLETION = b'{"prompt": "2 + 2 =", "completion": " 4"}'


PLAIN = b'{"text": "Once upon a time"}'
OPENAI_PAIR = json.dumps(
    {
        "input": {"messages": [{"role": "user", "content": "hi"}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "hello"}],
        "non_preferred_output": [{"role": "assistant", "content": "go away"}],
    }
).encode()
TRL_PAIR = b'{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}'


def test_every_shape_is_read() -> None:
    rows = list(read_rows([CHAT + b"\n\n" + COMPLETION + b"\n" + PLAIN]))
    assert [type(row) for row in rows] == [ChatRow, CompletionRow, TextRow]


def test_tools_and_weights_of_openais_files_are_kept() -> None:
    """A call needs no content, and an answer of the weight 0 is not learned; only answers have weights."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "no idea", "weight": 0},
        {"role": "user", "content": "try"},
        {"role": "assistant", "tool_calls": [call]},
    ]
    row = ChatRow.model_validate({"messages": messages, "tools": [tool], "parallel_tool_calls": False})
    assert [message.weight for message in row.messages] == [1, 0, 1, 1]
    assert row.messages[-1].tool_calls[0].function.name == row.tools[0].function.name == "add"
    messages[0]["weight"] = 0
    with pytest.raises(ValidationError, match="`weight` is of the assistant's messages"):
        ChatRow.model_validate({"messages": messages})
    with pytest.raises(ValidationError, match="every answer has the weight 0"):
        ChatRow.model_validate({"messages": [{"role": "user", "content": "a"}, {**messages[1]}]})


def test_preference_pairs_have_openais_shape_or_trls() -> None:
    rows = list(RowFile(lambda: [OPENAI_PAIR + b"\n" + TRL_PAIR], objective="dpo"))
    assert all(isinstance(row, PreferenceRow) for row in rows)
    first, second = rows
    assert isinstance(first, PreferenceRow)
    assert isinstance(second, PreferenceRow)
    assert not isinstance(first.chosen, str)
    assert first.chosen[0].content == "hello"
    assert (second.prompt, second.chosen, second.rejected) == ("2 + 2 =", " 4", " 5")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (COMPLETION, "is no pair of a preferred answer and another"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "b"}', "are the same"),
        (b'{"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c"}', "must all be texts"),
        (OPENAI_PAIR.replace(b"assistant", b"user", 1), "`chosen` must be one message, the assistant's"),
        (b'{"input": "hi", "preferred_output": [], "non_preferred_output": []}', "`input` must have `messages`"),
    ],
)
def test_a_faulty_pair_is_named_with_its_reason(line: bytes, reason: str) -> None:
    with pytest.raises(InvalidTrainingData) as caught:
        list(RowFile(lambda: [line], objective="dpo"))
    assert reason in caught.value.message


def test_broken_rows_are_left_out_if_asked_and_counted() -> None:
    """Each iteration reads the file again, and counts again; the report names the first twenty."""
    lines = RowFile(lambda: [b"\n".join([CHAT, *[b"x"] * 30, COMPLETION])], on_broken_row="skip")
    for _ in range(2):
        assert [type(row) for row in lines] == [ChatRow, CompletionRow]
        assert (lines.line, lines.broken, len(lines.errors)) == (32, 30, 20)
    assert lines.errors[0] == LineError(2, "is not JSON (Expecting value at column 1)")


def test_a_file_of_broken_rows_alone_is_refused_also_when_they_may_be_left_out() -> None:
    with pytest.raises(InvalidTrainingData, match="has no rows, and the 2 that there are are broken"):
        check_training_files("text-generation", [b"x\ny"], on_broken_row="skip")


def test_lines_may_be_cut_anywhere_by_the_stream() -> None:
    content = b"\n".join([CHAT, COMPLETION, CHAT])
    assert check_rows([content[start : start + 7] for start in range(0, len(content), 7)]) == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json", "is not JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"[1, 2]", "is not a JSON object"),
        (b'{"text": "plain", "prompt": "a"}', "must have either `messages`, or `prompt` and `completion`, or `text`"),
        (b'{"answer": "a"}', "must have either `messages`, or `prompt` and `completion`, or `text`"),
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
    "fields",
    [
        ("input", "target"),
        ("source", "target"),
        ("document", "summary"),
        ("dialogue", "summary"),
        ("text", "summary"),
    ],
)
def test_a_text_and_what_is_to_be_written_for_it_have_the_names_of_public_data_sets(fields: tuple[str, str]) -> None:
    """XSum's, SAMSum's, BillSum's, and CNN/DailyMail's below, with the ids that they carry along."""
    read, written = fields
    (row,) = read_rows([json.dumps({"id": "7", read: "rain fell", written: "rain"}).encode()], "text2text-generation")
    assert isinstance(row, TextToTextRow)
    assert (row.input, row.target) == ("rain fell", "rain")
    news = b'{"article": "rain fell", "highlights": "rain"}'
    assert list(read_rows([news], "text2text-generation")) == [TextToTextRow(input="rain fell", target="rain")]


@pytest.mark.parametrize(
    ("task", "line", "reason"),
    [
        ("text-classification", CHAT, "has no `text`; a row for text-classification is {"),
        ("token-classification", TEXT, "has no `tokens`; a row for token-classification is {"),
        ("question-answering", TAGGED, "has no `question`; a row for question-answering is {"),
        ("text2text-generation", TEXT, 'has no `target`; a row for text2text-generation is {"input"'),
        ("text2text-generation", b'{"summary": "a"}', "has no `input`; a row for text2text-generation is {"),
        ("text2text-generation", b'{"input": "", "target": "a"}', "`input`: String should have at least 1 character"),
        ("text2text-generation", b'{"input": "a", "source": "b", "target": "c"}', "`source`: Extra inputs"),
        ("text-generation", TEXT, "`label`: Extra inputs are not permitted"),
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
    with pytest.raises(InvalidTrainingData, match="line 2: no row of the training file has the label 'x'") as caught:
        check_training_files("text-classification", training, [TEXT + b"\n" + TEXT.replace(b"weather", b"x")])
    assert caught.value.param == "validation_file"
    with pytest.raises(InvalidTrainingData) as caught:
        check_training_files("text-generation", [CHAT], [TEXT])
    assert caught.value.param == "validation_file"
