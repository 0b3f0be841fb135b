"""The lines that rows and answers travel in."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.artifacts import ArtifactStore
from tandem.errors import UnknownArtifact
from tandem.job import Failure
from tandem.shard_rows import RowAnswer, ShardRow, lines, merged, read_part, read_shard

FAILURE = Failure(type="InvalidRequest", code="invalid_request", message="no", param="inputs")


@given(st.lists(st.binary(max_size=5).filter(lambda line: b"\n" not in line)), st.integers(1, 7))
def test_lines_do_not_depend_on_where_the_chunks_are_cut(texts: list[bytes], size: int) -> None:
    whole = b"".join(text + b"\n" for text in texts)
    chunks = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert list(lines(chunks)) == texts


def test_a_line_beyond_the_limit_is_cut_short() -> None:
    """A file without line ends does not fill the memory."""
    assert list(lines([b"ab\n", b"x" * 50, b"x" * 50, b"\ncd"], limit=10)) == [b"ab", b"x" * 11, b"cd"]


def test_the_last_line_needs_no_end() -> None:
    assert list(lines([b"a\nb"])) == [b"a", b"b"]


def test_rows_and_answers_come_back_as_they_were() -> None:
    row = ShardRow(3, {"inputs": "é\n"})
    answers = [RowAnswer(3, 1.5, {"generated_text": "é"}), RowAnswer(4, 2.5, failure=FAILURE)]

    assert list(read_shard([row.line()])) == [row]
    assert list(read_part([answer.line() for answer in answers])) == answers


def test_parts_are_merged_by_row(tmp_path: Path) -> None:
    artifacts = ArtifactStore(f"file://{tmp_path}")
    parts = [
        artifacts.put_stream(RowAnswer(row, 0.0, row).line() for row in rows).digest
        for rows in ((2, 9), (1, 5), (4,))
    ]
    assert [answer.row for answer in merged(artifacts, parts)] == [1, 2, 4, 5, 9]


def test_no_parts_are_no_answers(tmp_path: Path) -> None:
    assert list(merged(ArtifactStore(f"file://{tmp_path}"), [])) == []


def test_a_part_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnknownArtifact):
        list(merged(ArtifactStore(f"file://{tmp_path}"), ["0" * 64]))
