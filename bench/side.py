"""What each side of the comparison of queues is, and how it is measured: the same way for all.

A module of bench/sides is one side. `python -m bench.sides.NAME work URL` is its worker, `… measure URL COUNTS` its
producer, each a process of its own with the interpreter that has its library; the producer prints its figures as
JSON. The standard library alone is imported here.
"""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from bench.timing import quantiles_ms, timed

THREADS = 16
"""Of each worker, as figures of such libraries are usually given."""
WAIT_SECONDS = 120
"""Longest wait for one result; a side that needs more has failed."""
BATCHES_SECONDS = 2.0
"""A batch that takes less is repeated for so long, and the median counts."""
TASK = "bench.nothing"
ANSWER = 1
"""Of a task that does nothing: looked at, so that no side is fast because it fails."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is measured."""

    warm_up: int
    one_by_one: int
    """Jobs submitted each after the last one's result: enough for a 99th percentile."""
    at_once: int
    """Jobs submitted as fast as can be, then drained."""
    rounds: int
    """How often they are; the median counts."""
    rows: int
    """Of the batch."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Producer(Protocol):
    """A side's client. What `submit` returns is the library's own handle of a job."""

    def submit(self, count: int) -> list[Any]:
        """Queue so many jobs that do nothing."""

    def wait(self, submitted: list[Any]) -> list[object]:
        """Their results, read as the library offers it."""


class RowProducer(Producer, Protocol):
    """A side that takes part in the batch of rows."""

    def rows(self, texts: Sequence[str]) -> list[int]:
        """The length of each text, in order, as told by the worker."""


def nothing() -> int:
    return ANSWER


def length(text: str) -> int:
    """The work on one row of the batch: as good as none."""
    return len(text)


def run(work: Callable[[str], None], producer: Callable[[str], Producer]) -> None:
    """The entry of a side's module."""
    command, url, *arguments = sys.argv[1:]
    if command == "work":
        work(url)
        return
    counts = Counts(**json.loads(arguments[0]))
    measure: dict[str, Callable[[Any, Counts], dict[str, float]]] = {
        "measure": measure_nothing,
        "rows": measure_rows,
    }
    print(json.dumps(measure[command](producer(url), counts)))


def measure_nothing(producer: Producer, counts: Counts) -> dict[str, float]:
    """Submit → result one by one, and the rate at which many are drained, results included."""

    def together(jobs: int) -> None:
        _check(producer.wait(producer.submit(jobs)), [ANSWER] * jobs)

    def one_by_one(jobs: int) -> list[float]:
        return [timed(lambda: together(1)) for _ in range(jobs)]

    one_by_one(counts.warm_up)
    latencies = one_by_one(counts.one_by_one)
    drained = statistics.median(timed(lambda: together(counts.at_once)) for _ in range(counts.rounds))
    return {**quantiles_ms(latencies), "jobs_per_second": counts.at_once / drained}


def measure_rows(producer: RowProducer, counts: Counts) -> dict[str, float]:
    """The rate at which a batch of rows is answered, from its submission to its last result."""

    def batch(number: int, rows: int) -> float:
        # No two batches are alike: what is stored by its content is stored anew.
        texts = [f"row {row} of batch {number}: {'a text of some words ' * 2}" for row in range(rows)]
        answers: list[int] = []
        seconds = timed(lambda: answers.extend(producer.rows(texts)))
        _check(answers, [len(text) for text in texts])
        return seconds

    batch(0, counts.warm_up)
    taken = [batch(1, counts.rows)]
    while sum(taken) < BATCHES_SECONDS:
        taken.append(batch(len(taken) + 1, counts.rows))
    return {"rows_per_second": counts.rows / statistics.median(taken)}


def _check(answers: Sequence[object], expected: Sequence[object]) -> None:
    if list(answers) != list(expected):
        wrong = sum(given != right for given, right in zip(answers, expected, strict=False))
        raise RuntimeError(f"{len(answers)} of {len(expected)} jobs were answered, and {wrong} of these wrongly")
