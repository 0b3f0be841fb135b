"""From a file to examples and a report, row by row."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem.errors import Cancelled, InvalidTrainingData
from tandem.specs import TrainingRow
from tandem.training_rows import RowFile
from tests.unit.training.tiny import chat, chatml_tokenizer, colour_rows, run_training, tiny_llama
from tests.unit.training.tiny_encoders import ROWS, TOKENIZERS, tiny_body
from worker.training.data import BrokenRow, EncodedData
from worker.training.encoding import data_digest, leaked_rows
from worker.training.objectives import objective_for
from worker.training.objectives.question_answering import EncodedQuestions
from worker.training.objectives.text_generation import TextGeneration

OBJECTIVE = TextGeneration(chatml_tokenizer(), 200)


def lines(rows: list[TrainingRow]) -> list[bytes]:
    return [row.model_dump_json(exclude_none=True).encode() for row in rows]


def file_of(content: list[bytes], **options: Any) -> RowFile:
    return RowFile(lambda: [b"\n".join(content)], **options)


def test_a_file_gives_the_examples_that_memory_gives(tmp_path: Path) -> None:
    """In order, with the same report and the same digest; also for the windows of long contexts."""
    filed, kept = OBJECTIVE.encode(colour_rows(), folder=tmp_path), OBJECTIVE.encode(colour_rows())
    assert list(filed.examples) == list(kept.examples)
    assert filed.examples[-1] == kept.examples[-1]
    assert filed.examples[2:4] == list(kept.examples[2:4])
    assert (filed.report, filed.digest) == (kept.report, kept.digest)
    with pytest.raises(IndexError):
        filed.examples[len(filed.examples)]

    rows = ROWS["question-answering"]()
    objective = objective_for("question-answering", tiny_body(), TOKENIZERS["bert"], 32, rows)
    on_disk, in_memory = objective.encode(rows, folder=tmp_path), objective.encode(rows)
    assert isinstance(on_disk, EncodedQuestions)
    assert isinstance(in_memory, EncodedQuestions)
    assert list(on_disk.examples) == list(in_memory.examples)
    assert list(on_disk.windows) == list(in_memory.windows)
    assert list(on_disk.rows) == list(in_memory.rows)


def test_the_report_counts_lines_tokens_and_duplicates() -> None:
    content = lines([chat("red", "stop"), chat("green", "go"), chat("red", "stop")])
    data = OBJECTIVE.encode(file_of([content[0], b"", *content[1:]]))
    lengths = [len(example.input_ids) for example in data.examples]
    report = data.report
    assert (report.lines, report.rows, report.duplicate_rows) == (4, 3, 1)
    assert (report.tokens, report.longest_tokens) == (sum(lengths), max(lengths))
    assert report.mean_tokens == pytest.approx(sum(lengths) / 3)
    assert report.answer_tokens == sum(label != -100 for example in data.examples for label in example.labels)


def test_validation_rows_that_are_training_rows_are_counted() -> None:
    """What they say of the adapter is too good to be true."""
    training = OBJECTIVE.encode([chat("red", "stop"), chat("green", "go")])
    validation = OBJECTIVE.encode([chat("green", "go"), chat("green", "stop"), chat("green", "go")])
    assert leaked_rows(training, validation) == 2


def test_broken_rows_are_skipped_and_named() -> None:
    """Those that are no rows, and those that the model's template cannot render; by default the first one ends it."""
    refuses = "{% if messages[0]['content'] == 'red' %}{{ raise_exception('no red') }}{% endif %}"
    objective = TextGeneration(chatml_tokenizer(refuses + chatml_tokenizer().get_chat_template()), 200)
    content = [b"{", *lines([chat("red", "stop"), chat("green", "go")])]
    data = objective.encode(file_of(content, on_broken_row="skip"))
    assert (data.report.rows, data.report.broken_rows, data.report.lines) == (1, 2, 3)
    assert [error.line for error in data.report.errors] == [1, 2]
    assert isinstance(data.report.errors[0], BrokenRow)
    assert data.report.errors[1].message.endswith("no red")
    with pytest.raises(InvalidTrainingData, match="line 1: the model's chat template refuses") as raised:
        objective.encode(file_of(content[1:]), param="validation_file")
    assert raised.value.param == "validation_file"
    with pytest.raises(InvalidTrainingData, match="none of the 1 rows can be used; line 1: the model's chat"):
        objective.encode(file_of(content[1:2], on_broken_row="skip"))


def test_data_differs_by_any_token_label_or_file() -> None:
    def encoded(rows: list[TrainingRow]) -> EncodedData:
        return OBJECTIVE.encode(rows)

    rows = colour_rows()
    one, other = encoded(rows), encoded(rows[::-1])
    assert data_digest(one, None) == data_digest(encoded(rows), None)
    assert (
        len({data_digest(one, None), data_digest(other, None), data_digest(one, one), data_digest(one, other)}) == 4
    )


def test_encoding_ends_when_the_training_must_stop() -> None:
    """A file of millions of rows takes minutes; a cancelled job does not."""
    read = 0

    def endless() -> Iterator[TrainingRow]:
        nonlocal read
        while True:
            read += 1
            yield chat("red", "stop")

    def check() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        OBJECTIVE.encode(endless(), check=check)
    assert read == 1000


def test_rows_are_not_held_in_memory(tmp_path: Path) -> None:
    """Of two thousand rows no object is left, neither as they were read nor as they were encoded."""
    line = lines([chat("red", "stop")])[0] + b"\n"
    OBJECTIVE.encode(colour_rows(), folder=tmp_path)  # what the libraries load once
    (tmp_path / "many").mkdir()
    gc.collect()
    before = len(gc.get_objects())
    data = OBJECTIVE.encode(RowFile(lambda: (line for _ in range(2000))), folder=tmp_path / "many")
    gc.collect()
    assert len(gc.get_objects()) - before < 1000
    assert len(data.examples) == 2000
    assert data.examples[1999] == data.examples[0]
    assert data.report.duplicate_rows == 1999


@pytest.mark.parametrize("settings", [{}, {"max_steps": None, "epochs": 1.5}, {"gradient_accumulation_steps": 2}])
def test_the_report_comes_before_any_work_and_its_steps_are_exact(settings: dict[str, Any], tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    rows = colour_rows()
    outcome = run_training(
        tiny_llama(), tmp_path, rows=rows, validation_rows=rows[:2], on_event=events.append, **settings
    )
    assert events[0]["type"] == "data"
    assert events[0]["steps"] == outcome.steps == outcome.total_steps
    assert events[0]["eta_seconds"] is None
    assert events[0]["leaked_rows"] == outcome.leaked_rows == 2
    assert events[0]["training"]["rows"] == len(rows)
    assert outcome.validation_data is not None
    assert outcome.validation_data.rows == 2


def test_a_row_of_another_shape_says_what_is_expected(tmp_path: Path) -> None:
    encode: Callable[..., Any] = OBJECTIVE.encode
    with pytest.raises(InvalidTrainingData, match="row 1: a row for text-generation is"):
        encode(ROWS["text-classification"]())
