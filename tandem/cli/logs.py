"""`tandem logs`: what happens, or has happened, with a job."""

import json
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tandem.cli.charts import Point, extend, loss_chart
from tandem.cli.tables import event_line, loss_text, output
from tandem.client import JobEvent, JobHandle, Tandem
from tandem.client.transport import error_of
from tandem.errors import WaitTimeout
from tandem.job import JobState

SO_FAR_SECONDS = 1.0
"""Without `--follow`: what has happened already arrives well within this time."""


def logs(
    job: Annotated[str, typer.Argument(help="The job's id.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
) -> None:
    """Print a job's events: states, progress, losses, text. A failed job's reason ends them, with exit code 1."""
    with Tandem() as client:
        handle = client.get(job)
        events = client.events(handle, timeout=None if follow else SO_FAR_SECONDS)
        with suppress(*(() if follow else (WaitTimeout,))):
            if as_json:
                for event in events:
                    typer.echo(json.dumps({"id": event.id, "type": event.type, "data": event.data}))
                return
            with EventPrinter(output(), handle, live=follow) as printer:
                for event in events:
                    printer.show(event)
        ended = handle.refresh()
    if ended.state is JobState.FAILED and ended.failure is not None:
        raise error_of(ended.failure)


class EventPrinter:
    """Prints events as lines, text as text; in a terminal, a training's losses move one bar instead.

    At its end it draws the loss curve, if there was one.
    """

    def __init__(self, console: Console, job: JobHandle, *, live: bool) -> None:
        self._console = console
        self._in_text = False
        self._training: list[Point] = []
        self._held_out: list[Point] = []
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        if live and job.kind == "finetune" and console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._progress = Progress(*columns, console=console)

    def __enter__(self) -> "EventPrinter":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._in_text:
            self._console.print()
        chart = loss_chart(self._training, self._held_out)
        if chart is not None:
            self._console.print(chart)

    def show(self, event: JobEvent) -> None:
        self._collect(event)
        if event.type == "tokens":
            self._in_text = True
            self._console.print(event.data["text"], end="", markup=False, highlight=False, soft_wrap=True)
            return
        if self._progress is not None and event.type in ("progress", "metrics"):
            self._move(self._progress, event)
            return
        if self._in_text:
            self._in_text = False
            self._console.print()
        self._console.print(event_line(event), highlight=False, soft_wrap=True)

    def _collect(self, event: JobEvent) -> None:
        curve = {"metrics": self._training, "evaluation": self._held_out}.get(event.type)
        if curve is not None:
            extend(curve, (event.data["step"], event.data["loss"]))

    def _move(self, progress: Progress, event: JobEvent) -> None:
        if self._bar is None:
            self._bar = progress.add_task("", total=None)
        changes: dict[str, Any] = {}
        if event.type == "progress":
            changes = {"completed": event.data["step"], "total": event.data["total_steps"]}
        else:
            changes = {"description": loss_text(event.data)}
        progress.update(self._bar, **changes)
