"""From the rows of a file to its examples and its report, row by row and never wholly in memory."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tandem.errors import InvalidTrainingData
from tandem.specs import TrainingRow
from tandem.training_rows import RowFile
from worker.training.data import BrokenRow, DataReport, EncodedData, Example
from worker.training.example_file import EXAMPLES, ItemWriter
from worker.training.loss import IGNORED_LABEL

CHECK_ROWS = 1000
"""Rows between two looks at whether the training must stop: about a second of tokenizing."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """What one row has become."""

    examples: Sequence[Example]
    """None where nothing of it can be learned within the limit of tokens."""
    is_truncated: bool


def encode_rows(
    rows: Iterable[TrainingRow],
    encode_row: Callable[[TrainingRow], EncodedRow],
    *,
    labels: tuple[str, ...] = (),
    param: str = "training_file",
    folder: Path | None = None,
    check: Callable[[], None] = lambda: None,
) -> EncodedData:
    """Encode rows one by one; their examples lie in a file of `folder`, or in memory without one.

    `encode_row` raises InvalidTrainingData for a row that cannot be used. If `rows` are a file's and broken ones are
    to be skipped, it is counted with those; otherwise it is raised here, naming the row and `param`. `check` is
    called now and then, and what it raises ends the work. Raises InvalidTrainingData also when no row can be used.
    """
    file = rows if isinstance(rows, RowFile) else None
    skips = file is not None and file.on_broken_row == "skip"
    writer = ItemWriter(EXAMPLES, folder, param)
    tally = _Tally()
    number = 0
    for number, row in enumerate(rows, start=1):
        if number % CHECK_ROWS == 0:
            check()
        try:
            encoded = encode_row(row)
        except InvalidTrainingData as error:
            if file is not None and skips:
                file.note_broken(error.message)
                continue
            place = f"row {number}" if file is None else f"line {file.line}"
            raise InvalidTrainingData(f"{place}: {error.message}", param=param) from error
        tally.add(row, encoded)
        for example in encoded.examples:
            writer.add(example)
    examples = writer.close()
    if not examples:
        raise _nothing_left(number, file, param)
    return EncodedData(
        examples=examples,
        report=tally.report(number if file is None else file.line, file),
        labels=labels,
        digest=tally.sha.hexdigest(),
        lengths=tally.lengths,
        row_hashes=tally.row_hashes,
    )


def leaked_rows(training: EncodedData, validation: EncodedData) -> int:
    """How many validation rows are training rows too: what they say of the adapter is too good to be true."""
    return int(np.isin(_numbers(validation.row_hashes), _numbers(training.row_hashes)).sum())


def data_digest(training: EncodedData, validation: EncodedData | None) -> str:
    """SHA-256 of all examples, in order, and of what their labels mean."""
    parts = [training.digest, "" if validation is None else validation.digest, *training.labels]
    # Lengths before the parts: no two lists of parts make the same bytes.
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()


@dataclass
class _Tally:
    """What is counted while rows are encoded: 12 bytes a row, and 4 more for each further window."""

    rows: int = 0
    truncated: int = 0
    dropped: int = 0
    answer_tokens: int = 0
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    row_hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    sha: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def add(self, row: TrainingRow, encoded: EncodedRow) -> None:
        self.rows += 1
        self.truncated += encoded.is_truncated
        self.dropped += not encoded.examples
        content = hashlib.blake2b(row.model_dump_json().encode(), digest_size=8).digest()
        self.row_hashes.append(int.from_bytes(content))
        for example in encoded.examples:
            self.lengths.append(len(example.input_ids))
            self.answer_tokens += sum(label != IGNORED_LABEL for label in example.labels)
            # Whether there are token types follows from the model.
            sizes = (len(example.input_ids), len(example.labels))
            numbers = (*example.input_ids, *example.labels, *(example.token_type_ids or ()), *(example.lengths or ()))
            self.sha.update(array("q", [*sizes, *numbers]).tobytes())

    def report(self, lines: int, file: RowFile | None) -> DataReport:
        errors = [] if file is None else file.errors
        return DataReport(
            lines=lines,
            rows=self.rows,
            tokens=sum(self.lengths),
            longest_tokens=max(self.lengths),
            mean_tokens=sum(self.lengths) / len(self.lengths),
            answer_tokens=self.answer_tokens,
            truncated_rows=self.truncated,
            dropped_rows=self.dropped,
            duplicate_rows=len(self.row_hashes) - len(np.unique(_numbers(self.row_hashes))),
            broken_rows=0 if file is None else file.broken,
            errors=tuple(BrokenRow(error.line, error.message) for error in errors),
        )


def _numbers(hashes: "array[int]") -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    return np.frombuffer(hashes, dtype=np.uint64)


def _nothing_left(rows: int, file: RowFile | None, param: str) -> InvalidTrainingData:
    if rows == 0:
        return InvalidTrainingData("the file has no rows: send at least one", param=param)
    if file is not None and file.errors:
        first = file.errors[0]
        return InvalidTrainingData(
            f"none of the {rows} rows can be used; line {first.line}: {first.message}", param=param
        )
    return InvalidTrainingData(
        f"none of the {rows} rows has anything to learn within the limit of tokens: shorten the texts, or raise "
        "hyperparameters.max_tokens",
        param=param,
    )
