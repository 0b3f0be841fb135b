"""Cuts the rows of a batch into shards: as they come, each model's by themselves."""

from collections import defaultdict
from dataclasses import dataclass, field

from tandem.artifacts import ArtifactStore
from tandem.batch import Shard
from tandem.job_reads import media_references
from tandem.shard_rows import RowAnswer, ShardRow
from tandem.specs.batch import MAX_SHARD_ROWS
from tandem.specs.tasks import Task

SHARD_BYTES = 16 * 2**20
"""A shard of long rows is cut sooner: a worker holds it in memory."""


@dataclass(slots=True)
class _Open:
    """Lines that are not yet written."""

    lines: list[bytes] = field(default_factory=list)
    first: int = 0
    size: int = 0
    """Bytes."""

    def add(self, row: int, line: bytes) -> None:
        self.first = self.first or row
        self.lines.append(line)
        self.size += len(line)

    @property
    def is_full(self) -> bool:
        return len(self.lines) >= MAX_SHARD_ROWS or self.size >= SHARD_BYTES


class ShardCutter:
    """Holds no more than one open shard a model, and one part of refused rows."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._open: defaultdict[tuple[Task, str], _Open] = defaultdict(_Open)
        self._refused = _Open()
        self._shards: list[Shard] = []
        self._rejected: list[str] = []

    def add(self, row: ShardRow, task: Task, model: str) -> None:
        place = (task, model)
        self._open[place].add(row.row, row.line())
        if self._open[place].is_full:
            self._cut(task, model, self._open.pop(place))

    def reject(self, answer: RowAnswer) -> None:
        """A row that is not run: its answer is known."""
        self._refused.add(answer.row, answer.line())
        if self._refused.is_full:
            self._write_rejected()

    def finish(self) -> tuple[list[Shard], tuple[str, ...]]:
        """All shards, and the parts (digests) of the refused rows."""
        for (task, model), rows in self._open.items():
            self._cut(task, model, rows)
        self._open.clear()
        if self._refused.lines:
            self._write_rejected()
        return self._shards, tuple(self._rejected)

    def _cut(self, task: Task, model: str, rows: _Open) -> None:
        named = {digest for line in rows.lines for digest in media_references(line.decode())}
        self._shards.append(
            Shard(
                number=len(self._shards),
                task=task,
                model=model,
                rows=self._artifacts.put_stream(rows.lines).digest,
                first=rows.first,
                count=len(rows.lines),
                media=tuple(sorted(named)),
            )
        )

    def _write_rejected(self) -> None:
        self._rejected.append(self._artifacts.put_stream(self._refused.lines).digest)
        self._refused = _Open()
