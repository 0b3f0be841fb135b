"""Jobs of several rows for `map`: submitted together, and told apart again."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from tandem.client.mapping import NOT_OF_ONE_ROW
from tandem.client.records import JobHandle
from tandem.errors import InvalidRequest, TandemError

Item = TypeVar("Item")
Started = list[tuple[JobHandle | TandemError, int]]
"""Jobs and how many rows each has, in the rows' order; or the error of one that was refused."""


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, read as they are needed."""
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk


class RowJobs:
    """Submits a list of rows as one job; if the service refuses it for one of them, each by itself."""

    def __init__(
        self,
        submit: Callable[[Any], JobHandle],
        wait: Callable[[JobHandle], Any],
        cancel: Callable[[JobHandle], object],
        error_of: Callable[[dict[str, Any]], TandemError],
    ) -> None:
        self._submit, self._wait, self._cancel, self._error_of = submit, wait, cancel, error_of

    def start(self, rows: list[Any]) -> Started:
        try:
            return [(self._submit(rows), len(rows))]
        except InvalidRequest as error:
            if len(rows) == 1:
                return [(error, 1)]
        return [self._start_one(row) for row in rows]

    def finish(self, started: Started) -> list[Any]:
        """The result of every row, or its error."""
        return [row for job, rows in started for row in self._rows_of(job, rows)]

    def abandon(self, started: Started) -> None:
        for job, _ in started:
            if not isinstance(job, TandemError):
                self._cancel(job)

    def _start_one(self, row: Any) -> tuple[JobHandle | TandemError, int]:
        try:
            return self._submit([row]), 1
        except InvalidRequest as error:
            return error, 1

    def _rows_of(self, job: JobHandle | TandemError, rows: int) -> list[Any]:
        if isinstance(job, TandemError):
            return [job]
        try:
            results = self._wait(job)["rows"]
        except NOT_OF_ONE_ROW:
            raise
        except TandemError as error:
            return [error] * rows
        return [
            self._error_of(row["error"]) if isinstance(row, dict) and row.keys() == {"error"} else row
            for row in results
        ]
