"""Training files: JSON lines, each row in its task's shape, checked line by line before a job is accepted."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from tandem.errors import InvalidTrainingData
from tandem.specs.finetune import FineTuneTask
from tandem.specs.training_rows import (
    ANCHOR_NAMES,
    POSITIVE_NAMES,
    SOURCE_NAMES,
    TARGET_NAMES,
    AnchorRow,
    ChatRow,
    CompletionRow,
    PreferenceRow,
    QuestionAnsweringRow,
    TextClassificationRow,
    TextRow,
    TextToTextRow,
    TokenClassificationRow,
    TrainingRow,
)

ERRORS_SHOWN = 5
"""Faulty lines named in one error: enough to see the pattern."""
ERRORS_REPORTED = 20
"""Faulty lines named in a report, where there is room for more."""
MAX_LINE_BYTES = 4 * 1024 * 1024
"""One row: four times the largest text, so that a file without line ends cannot fill the memory."""
MAX_LABELS = 10_000
"""Different labels in one file: far above any set of classes; more are texts that somebody took for labels."""

ROW_EXAMPLES: dict[FineTuneTask, str] = {
    "text-generation": (
        '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]} '
        'or {"prompt": "…", "completion": "…"} or {"text": "…"}'
    ),
    "text-classification": '{"text": "…", "label": "…"} or {"text": "…", "text_pair": "…", "label": "…"}',
    "token-classification": '{"tokens": ["Ada", "sings"], "tags": ["B-PER", "O"]}',
    "question-answering": (
        '{"question": "…", "context": "…", "answers": {"text": ["…"], "answer_start": [12]}}, with empty lists '
        "where the context has no answer"
    ),
    "text2text-generation": '{"input": "…", "target": "…"} or {"document": "…", "summary": "…"}',
    "feature-extraction": '{"anchor": "…", "positive": "…"} or {"anchor": "…", "positive": "…", "negative": "…"}',
}
"""What a row of each task looks like, for error messages."""
TEXT_SHAPES: dict[str, type[TrainingRow]] = {"messages": ChatRow, "prompt": CompletionRow, "text": TextRow}
"""The field by which a row of text-generation is told → its shape."""
PREFERENCE_EXAMPLE = (
    '{"prompt": "…", "chosen": "…", "rejected": "…"} or '
    '{"input": {"messages": […]}, "preferred_output": [{…}], "non_preferred_output": [{…}]}'
)
"""The same for the objective dpo."""
LABELLED_SHAPES: dict[FineTuneTask, tuple[type[TrainingRow], str]] = {
    "text-classification": (TextClassificationRow, "text"),
    "token-classification": (TokenClassificationRow, "tokens"),
    "question-answering": (QuestionAnsweringRow, "question"),
}
"""Task with a head of its own → its rows' shape, and the field without which a row is no such row at all."""


NAMED_SHAPES: dict[FineTuneTask, tuple[type[TrainingRow], tuple[tuple[str, ...], ...]]] = {
    "text2text-generation": (TextToTextRow, (SOURCE_NAMES, TARGET_NAMES)),
    "feature-extraction": (AnchorRow, (ANCHOR_NAMES, POSITIVE_NAMES)),
}
"""Task whose rows have several names for a field → their shape, and the names of each field that they must have."""


OnBrokenRow = Literal["fail", "skip"]
ObjectiveName = Literal["supervised", "dpo"]


@dataclass(frozen=True, slots=True)
class LineError:
    line: int
    """Counted from 1."""
    message: str


class RowFile:
    """The rows of one file, in the shape that a task learns from. Each iteration reads the file anew, line by line.

    Broken rows are counted. With `fail` no row follows the first of them, and the end of the iteration raises
    InvalidTrainingData that names the first ones; with `skip` they are left out. So does a file without a row.
    """

    def __init__(
        self,
        open_file: Callable[[], Iterable[bytes]],
        task: FineTuneTask = "text-generation",
        *,
        objective: ObjectiveName = "supervised",
        param: str = "training_file",
        on_broken_row: OnBrokenRow = "fail",
    ) -> None:
        """`open_file` gives the file's content from its beginning, in pieces of any size."""
        self._open = open_file
        self._task = task
        self._objective: ObjectiveName = objective
        self.param = param
        self.on_broken_row: OnBrokenRow = on_broken_row
        self.line = 0
        """Of the last row or error that was read; at the end, the lines of the file. Blank ones count."""
        self.broken = 0
        self.errors: list[LineError] = []
        """The first broken rows."""

    def __iter__(self) -> Iterator[TrainingRow]:
        self.line, self.broken, self.errors = 0, 0, []
        rows = 0
        for number, line in enumerate(_lines(self._open()), start=1):
            self.line = number
            if not line.strip():
                continue
            try:
                row = _row(line, self._task, self._objective)
            except ValueError as error:
                self.note_broken(str(error))
                continue
            if self.on_broken_row == "skip" or not self.broken:
                rows += 1
                yield row
        if self.broken and self.on_broken_row == "fail":
            raise self._faulty()
        if not rows:
            reason = f", and the {self.broken} that there are are broken" if self.broken else ""
            example = row_example(self._task, self._objective)
            raise InvalidTrainingData(
                f"`{self.param}` has no rows{reason}; it must be JSON lines such as {example}", param=self.param
            )

    def note_broken(self, reason: str) -> None:
        """The row read last cannot be used, whether it is no such row or a model's tokenizer cannot take it."""
        self.broken += 1
        if len(self.errors) < ERRORS_REPORTED:
            self.errors.append(LineError(self.line, reason))

    def _faulty(self) -> InvalidTrainingData:
        named = self.errors[:ERRORS_SHOWN]
        shown = "; ".join(f"line {error.line}: {error.message}" for error in named)
        more = f" (and {self.broken - len(named)} more lines)" if self.broken > len(named) else ""
        return InvalidTrainingData(f"`{self.param}` has {self.broken} faulty lines: {shown}{more}", param=self.param)


def row_example(task: FineTuneTask, objective: ObjectiveName = "supervised") -> str:
    """What a row looks like, for error messages."""
    return PREFERENCE_EXAMPLE if objective == "dpo" else ROW_EXAMPLES[task]


def read_rows(
    chunks: Iterable[bytes], task: FineTuneTask = "text-generation", *, param: str = "training_file"
) -> Iterator[TrainingRow]:
    """The rows of a file that is read once. Raises InvalidTrainingData at the end, as `RowFile` does."""
    return iter(RowFile(lambda: chunks, task, param=param))


def check_rows(
    chunks: Iterable[bytes], task: FineTuneTask = "text-generation", *, param: str = "training_file"
) -> int:
    """How many rows a file has. Raises InvalidTrainingData."""
    return sum(1 for _ in read_rows(chunks, task, param=param))


def check_training_files(
    task: FineTuneTask,
    training: Iterable[bytes],
    validation: Iterable[bytes] | None = None,
    *,
    objective: ObjectiveName = "supervised",
    on_broken_row: OnBrokenRow = "fail",
) -> None:
    """Check both files of a job, row by row, and that the labels of the one are known from the other.

    Raises InvalidTrainingData with the param `training_file` or `validation_file`.
    """

    def rows(chunks: Iterable[bytes], param: str) -> RowFile:
        return RowFile(lambda: chunks, task, objective=objective, param=param, on_broken_row=on_broken_row)

    labels = frozenset(labels_of(task, rows(training, "training_file")))
    if validation is not None:
        held_out = rows(validation, "validation_file")
        for row in held_out:
            try:
                refuse_unknown_labels(row, labels)
            except InvalidTrainingData as error:
                if on_broken_row == "fail":
                    raise InvalidTrainingData(
                        f"line {held_out.line}: {error.message}", param="validation_file"
                    ) from error
                held_out.note_broken(error.message)


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


def refuse_unknown_labels(row: TrainingRow, labels: Collection[str]) -> None:
    """Raises InvalidTrainingData (param `validation_file`), without the row's place, if it has a label that is not in
    training."""
    for label in _labels(row):
        if label not in labels:
            raise InvalidTrainingData(
                f"no row of the training file has the label {label!r}, so it cannot be learned",
                param="validation_file",
            )


def _labels(row: TrainingRow) -> Iterable[str]:
    if isinstance(row, TextClassificationRow):
        return (row.label,)
    return row.tags if isinstance(row, TokenClassificationRow) else ()


def _row(line: bytes, task: FineTuneTask, objective: ObjectiveName) -> TrainingRow:
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
    shape = _shape(value, task, objective)
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"`{field}`: {first['msg']}" if field else first["msg"]) from error


def _shape(value: dict[str, Any], task: FineTuneTask, objective: ObjectiveName) -> type[TrainingRow]:
    """The shape of a row that has the fields of `value`. Raises ValueError when the task has none such."""
    if objective == "dpo":
        if not ({"prompt", "chosen", "rejected"} <= value.keys() or "input" in value):
            raise ValueError(f"is no pair of a preferred answer and another: a row for dpo is {PREFERENCE_EXAMPLE}")
        return PreferenceRow
    if task == "text-generation":
        found = [shape for name, shape in TEXT_SHAPES.items() if name in value]
        if len(found) != 1:
            raise ValueError("must have either `messages`, or `prompt` and `completion`, or `text`")
        return found[0]
    if task in NAMED_SHAPES:
        shape, needed = NAMED_SHAPES[task]
        for names in needed:
            if not any(name in value for name in names):
                raise ValueError(f"has no `{names[0]}`; a row for {task} is {ROW_EXAMPLES[task]}")
        return shape
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
