"""Many jobs with a bounded number in flight, their results in the order of the inputs."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import closing, suppress
from typing import Literal, TypeVar

from tandem.errors import (
    AuthenticationFailed,
    NotFound,
    QueueFull,
    QueueUnavailable,
    ServiceUnreachable,
    TandemError,
)

Input = TypeVar("Input")
Started = TypeVar("Started")
Result = TypeVar("Result")
OnError = Literal["raise", "return"]

NOT_OF_ONE_ROW = (ServiceUnreachable, QueueUnavailable, QueueFull, AuthenticationFailed, NotFound)
"""Errors that the next input would meet too: they end the whole run, whatever `on_error` says."""


def in_order(
    inputs: Iterable[Input],
    *,
    start: Callable[[Input], Started],
    finish: Callable[[Started], Result],
    abandon: Callable[[Started], object],
    window: int,
    on_error: OnError,
) -> Generator[Result | TandemError, None, None]:
    """Start up to `window` inputs ahead and yield each result at its input's place.

    Inputs are taken one at a time, so they may be endless. If the caller stops, or an error ends the run, what has
    been started and not finished is abandoned.
    """
    started: deque[Started | TandemError] = deque()
    try:
        for item in inputs:
            if len(started) == window:
                yield _attempt(finish, started.popleft(), on_error)
            started.append(_attempt(start, item, on_error))
        while started:
            yield _attempt(finish, started.popleft(), on_error)
    finally:
        for left in started:
            if not isinstance(left, TandemError):
                # The error that ended the run, if one did, is the one to show.
                with suppress(TandemError):
                    abandon(left)


def _attempt(call: Callable[[Input], Result], item: Input | TandemError, on_error: OnError) -> Result | TandemError:
    """The call's result; or the row's error, its own or one that an earlier step had, where errors are kept."""
    if isinstance(item, TandemError):
        return item
    try:
        return call(item)
    except TandemError as error:
        if on_error == "raise" or isinstance(error, NOT_OF_ONE_ROW):
            raise
        return error


def each_row(
    chunks: Generator[list[Result | TandemError] | TandemError, None, None], on_error: OnError
) -> Generator[Result | TandemError, None, None]:
    """The rows of all chunks, one after the other; a row's error is raised at its place, or kept there."""
    with closing(chunks):
        for chunk in chunks:
            if isinstance(chunk, TandemError):
                raise chunk
            for row in chunk:
                if on_error == "raise" and isinstance(row, TandemError):
                    raise row
                yield row


def with_progress(
    results: Generator[Result, None, None], description: str, inputs: Iterable[object]
) -> Iterator[Result]:
    """The results as they are, with a bar on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with closing(results), Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(description, total=len(inputs) if isinstance(inputs, Sized) else None)
        for result in results:
            progress.advance(bar)
            yield result
