"""Training files are checked line by line, and the error names the lines."""

import json

import pytest

from tandem import training_rows
from tandem.errors import InvalidTrainingData
from tandem.specs import ChatRow, CompletionRow
from tandem.training_rows import check_rows, read_rows

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
