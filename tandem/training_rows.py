"""Training files: JSON lines, each row in its task's shape, checked line by line before a job is accepted."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tandem.errors import InvalidTrainingData
from tandem.specs.finetune import (
    ChatRow,
    CompletionRow,
    FineTuneTask,
    QuestionAnsweringRow,
    TextClassificationRow,
    TokenClassificationRow,
    TrainingRow,
)

ERRORS_SHOWN = 5
"""Faulty lines named in one error: enough to see the pattern."""
MAX_LINE_BYTES = 4 * 1024 * 1024
"""One row: four times the largest text, so that a file without line ends cannot fill the memory."""
MAX_LABELS = 10_000
"""Different labels in one file: far above any set of classes; more are texts that somebody took for labels."""

ROW_EXAMPLES: dict[FineTuneTask, str] = {
    "text-generation": (
        '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]} '
        'or {"prompt": "…", "completion": "…"}'
    ),
    "text-classification": '{"text": "…", "label": "…"} or {"text": "…", "text_pair": "…", "label": "…"}',
    "token-classification": '{"tokens": ["Ada", "sings"], "tags": ["B-PER", "O"]}',
    "question-answering": (
        '{"question": "…", "context": "…", "answers": {"text": ["…"], "answer_start": [12]}}, with empty lists '
        "where the context has no answer"
    ),
}
"""What a row of each task looks like, for error messages."""
LABELLED_SHAPES: dict[FineTuneTask, tuple[type[TrainingRow], str]] = {
    "text-classification": (TextClassificationRow, "text"),
    "token-classification": (TokenClassificationRow, "tokens"),
    "question-answering": (QuestionAnsweringRow, "question"),
}
"""Task with a head of its own → its rows' shape, and the field without which a row is no such row at all."""


@dataclass(frozen=True, slots=True)
class LineError:
    line: int
    """Counted from 1."""
    message: str


def read_rows(
    chunks: Iterable[bytes], task: FineTuneTask = "text-generation", *, param: str = "training_file"
) -> Iterator[TrainingRow]:
    """The rows of a file, in the shape that `task` learns from.

    Raises InvalidTrainingData at the end, naming the first faulty lines, if any line is; or if there is no row.
    """
    errors: list[LineError] = []
    faulty = rows = 0
    for number, line in enumerate(_lines(chunks), start=1):
        if not line.strip():
            continue
        try:
            row = _row(line, task)
        except ValueError as error:
            faulty += 1
            if len(errors) < ERRORS_SHOWN:
                errors.append(LineError(number, str(error)))
            continue
        rows += 1
        if not faulty:
            yield row
    if faulty:
        shown = "; ".join(f"line {error.line}: {error.message}" for error in errors)
        more = f" (and {faulty - len(errors)} more lines)" if faulty > len(errors) else ""
        raise InvalidTrainingData(f"`{param}` has {faulty} faulty lines: {shown}{more}", param=param)
    if not rows:
        raise InvalidTrainingData(
            f"`{param}` has no rows; it must be JSON lines such as {ROW_EXAMPLES[task]}", param=param
        )


def check_rows(
    chunks: Iterable[bytes], task: FineTuneTask = "text-generation", *, param: str = "training_file"
) -> int:
    """How many rows a file has. Raises InvalidTrainingData."""
    return sum(1 for _ in read_rows(chunks, task, param=param))


def check_training_files(
    task: FineTuneTask, training: Iterable[bytes], validation: Iterable[bytes] | None = None
) -> None:
    """Check both files of a job, row by row, and that the labels of the one are known from the other.

    Raises InvalidTrainingData with the param `training_file` or `validation_file`.
    """
    labels = frozenset(labels_of(task, read_rows(training, task)))
    if validation is not None:
        for number, row in enumerate(read_rows(validation, task, param="validation_file"), start=1):
            refuse_unknown_labels(row, labels, number)


def labels_of(task: FineTuneTask, rows: Iterable[TrainingRow]) -> tuple[str, ...]:
    """The labels of a training file, in the order of the head's outputs; none for tasks that have no labels.

    Sorted: numbers as numbers, others as text. Raises InvalidTrainingData unless there are at least two.
    """
    found: set[str] = set()
    for row in rows:
        found.update(_labels(row))
        if len(found) > MAX_LABELS:
            raise InvalidTrainingData(
                f"the rows have more than {MAX_LABELS} different labels; to learn texts, use text-generation",
                param="training_file",
            )
    if task not in ("text-classification", "token-classification"):
        return ()
    if len(found) < 2:
        raise InvalidTrainingData(
            f"all rows have the label {', '.join(found)!r}: there must be two labels at least to tell apart",
            param="training_file",
        )
    if all(label.isascii() and label.isdigit() for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))  # "1" and "01" are two labels
    return tuple(sorted(found))


def refuse_unknown_labels(row: TrainingRow, labels: Collection[str], number: int) -> None:
    """Raises InvalidTrainingData (param `validation_file`) if row `number` has a label that is not in training."""
    for label in _labels(row):
        if label not in labels:
            raise InvalidTrainingData(
                f"row {number}: no row of the training file has the label {label!r}, so it cannot be learned",
                param="validation_file",
            )


def _labels(row: TrainingRow) -> Iterable[str]:
    if isinstance(row, TextClassificationRow):
        return (row.label,)
    return row.tags if isinstance(row, TokenClassificationRow) else ()


def _row(line: bytes, task: FineTuneTask) -> TrainingRow:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"is longer than the limit of {MAX_LINE_BYTES} bytes")
    try:
        # A file saved on Windows may begin with a byte order mark. Bytes are decoded here, since json.loads guesses.
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    shape = _shape(value, task)
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"`{field}`: {first['msg']}") from error


def _shape(value: dict[str, Any], task: FineTuneTask) -> type[TrainingRow]:
    """The shape of a row that has the fields of `value`. Raises ValueError when the task has none such."""
    if task == "text-generation":
        if ("messages" in value) == ("prompt" in value):
            raise ValueError("must have either `messages`, or `prompt` and `completion`")
        return ChatRow if "messages" in value else CompletionRow
    shape, identifying = LABELLED_SHAPES[task]
    if identifying not in value:
        raise ValueError(f"has no `{identifying}`; a row for {task} is {ROW_EXAMPLES[task]}")
    return shape


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a byte stream; a line that is too long is cut just above the limit, and refused by the caller."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
        if len(rest) > MAX_LINE_BYTES:
            rest = rest[: MAX_LINE_BYTES + 1]
    if rest:
        yield rest
