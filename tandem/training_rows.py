"""Training files: JSON lines of chat or prompt/completion rows, checked line by line before a job is accepted."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from tandem.errors import InvalidTrainingData
from tandem.specs import ChatRow, CompletionRow, TrainingRow

ERRORS_SHOWN = 5
"""Faulty lines named in one error: enough to see the pattern."""
MAX_LINE_BYTES = 4 * 1024 * 1024
"""One row: four times the largest text, so that a file without line ends cannot fill the memory."""


@dataclass(frozen=True, slots=True)
class LineError:
    line: int
    """Counted from 1."""
    message: str


def read_rows(chunks: Iterable[bytes], *, param: str = "training_file") -> Iterator[TrainingRow]:
    """The rows of a file.

    Raises InvalidTrainingData at the end, naming the first faulty lines, if any line is; or if there is no row.
    """
    errors: list[LineError] = []
    faulty = rows = 0
    for number, line in enumerate(_lines(chunks), start=1):
        if not line.strip():
            continue
        try:
            row = _row(line)
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
            f"`{param}` has no rows; it must be JSON lines such as "
            '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]} '
            'or {"prompt": "…", "completion": "…"}',
            param=param,
        )


def check_rows(chunks: Iterable[bytes], *, param: str = "training_file") -> int:
    """How many rows a file has. Raises InvalidTrainingData."""
    return sum(1 for _ in read_rows(chunks, param=param))


def _row(line: bytes) -> TrainingRow:
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
    if ("messages" in value) == ("prompt" in value):
        raise ValueError("must have either `messages`, or `prompt` and `completion`")
    shape = ChatRow if "messages" in value else CompletionRow
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"`{field}`: {first['msg']}") from error


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
