"""The rows of a batch on their way to a worker and back: JSON lines in the artifact store.

A shard's rows are one blob. Its answers are several, its parts: a worker writes what it has done since the last part
every few seconds, so that a lost attempt loses little. Within a part the answers are in the order of their rows.
"""

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from tandem.artifacts import ArtifactStore
from tandem.job import Failure


@dataclass(frozen=True, slots=True)
class ShardRow:
    """One request of a batch, as the job that it stands for."""

    row: int
    """Its line in the batch's file, counted from 1."""
    spec: dict[str, Any]
    """An inference spec, as job records keep it."""

    def line(self) -> bytes:
        return _line({"row": self.row, "spec": self.spec})


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """What one row came to: the result of its spec, or why it has failed."""

    row: int
    at: float
    """When it ended, in seconds since the epoch."""
    result: Any = None
    failure: Failure | None = None

    def line(self) -> bytes:
        if self.failure is not None:
            return _line({"row": self.row, "at": self.at, "failure": self.failure.model_dump(exclude_defaults=True)})
        return _line({"row": self.row, "at": self.at, "result": self.result})


def read_shard(chunks: Iterable[bytes]) -> Iterator[ShardRow]:
    """The rows of a shard's blob."""
    for line in lines(chunks):
        fields = json.loads(line)
        yield ShardRow(fields["row"], fields["spec"])


def read_part(chunks: Iterable[bytes]) -> Iterator[RowAnswer]:
    """The answers of one part, by row."""
    for line in lines(chunks):
        fields = json.loads(line)
        failure = fields.get("failure")
        yield RowAnswer(
            row=fields["row"],
            at=fields["at"],
            result=fields.get("result"),
            failure=None if failure is None else Failure.model_validate(failure),
        )


def merged(artifacts: ArtifactStore, parts: Sequence[str]) -> Iterator[RowAnswer]:
    """The answers of several parts (digests), by row: no more of them in memory than one a part.

    Raises UnknownArtifact.
    """
    return heapq.merge(*(read_part(artifacts.chunks(digest)) for digest in parts), key=attrgetter("row"))


def lines(chunks: Iterable[bytes], limit: int | None = None) -> Iterator[bytes]:
    """The lines of a stream, without their ends; of one with more than `limit` bytes, its first `limit` + 1."""
    begun = b""
    for chunk in chunks:
        *whole, begun = (begun + chunk).split(b"\n")
        yield from whole
        if limit is not None and len(begun) > limit:
            # What is cut off is of no use to anybody, and the line may go on for as long as the file.
            begun = begun[: limit + 1]
    if begun:
        yield begun


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
