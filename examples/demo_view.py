"""What the demo shows: in a terminal with colours and a live bar, elsewhere as plain lines."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tandem.cli.charts import Point, loss_chart, running_mean
from tandem.cli.tables import loss_text, progress_text
from tandem.client import JobEvent
from tandem.home import RunningService

PLAIN_COLUMNS = 110
"""Width where the output is no terminal."""
PLAIN_LINES = 10
"""Lines that a training writes where there is no live bar."""
MEAN_STEPS = 5
"""One step's loss depends on its eight rows more than on what was learned."""
TRAINING_COLOUR, HELD_OUT_COLOUR = "#2a9d8f", "#e76f51"

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=PLAIN_COLUMNS)


def addresses(service: RunningService) -> None:
    lines = [f"API      {service.api_url}", f"API docs {service.api_url}/docs"]
    if service.flower_url is not None:
        lines.append(f"Flower   {service.flower_url}  (user tandem, password {service.flower_password})")
    lines.append(f"API key  {service.api_key}")
    console.print(Panel("\n".join(lines), title="Tandem runs on this machine", border_style="green"))


def step_begins(number: int, title: str) -> None:
    console.print()
    console.rule(f"[bold cyan]{number}. {title}", align="left", style="cyan")


def step_ends(seconds: float) -> None:
    console.print(f"[green]✓[/green] [dim]{seconds:.1f} s[/dim]")


def note(text: str) -> None:
    console.print(f"[dim]{escape(text)}[/dim]")


def answer(question: str, text: str, tokens: int) -> None:
    console.print(f"[bold]{escape(question)}[/bold]  [dim]{tokens} tokens[/dim]")
    console.print(f"  {escape(' '.join(text.split()))}")


def similarity_table(texts: Sequence[str], similarity: Sequence[Sequence[float]]) -> None:
    table = _table("", *(str(number) for number in range(1, len(texts) + 1)))
    for number, (text, row) in enumerate(zip(texts, similarity, strict=True), start=1):
        table.add_row(f"{number}  {text}", *(_shade(value) for value in row))
    console.print(table)


def _shade(value: float) -> str:
    style = "bold green" if value > 0.5 else "dim"
    return f"[{style}]{value:.2f}[/{style}]"


def topics_table(texts: Sequence[str], rows: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    table = _table("text", "topics, best first")
    for text, row in zip(texts, rows, strict=True):
        table.add_row(text, "   ".join(f"{label['label']} {label['score']:.2f}" for label in row))
    console.print(table)


def uploaded(what: str, file_id: str, rows: int, size: int) -> None:
    console.print(f"uploaded {what:<9} {rows:>4} conversations, {size / 1024:.0f} KB  [dim]{file_id}[/dim]")


def training_outcome(adapter: str, metrics: Mapping[str, Any]) -> None:
    before, after = metrics["validation_loss_before"], metrics["validation_loss_after"]
    console.print(f"adapter [bold]{escape(adapter)}[/bold]")
    console.print(
        f"held-out loss [bold]{before:.3f}[/bold] before, [bold green]{after:.3f}[/bold green] after "
        f"{metrics['steps']} steps  [dim]{metrics['tokens']} tokens in {metrics['seconds']:.0f} s[/dim]"
    )


def side_by_side(questions: Sequence[str], of_base: Sequence[str], of_adapter: Sequence[str]) -> None:
    table = _table("question", "base", "adapter", lines=True)
    for row in zip(questions, of_base, of_adapter, strict=True):
        table.add_row(*(escape(" ".join(text.split())) for text in row))
    console.print(table)


def finished(seconds: float, home: Path, service: RunningService | None) -> None:
    lines = [f"Every step did what it says, in {seconds / 60:.1f} minutes."]
    if service is None:
        lines.append(f"The adapter is kept: `tandem up --home {home}` serves it again, with its docs and Flower.")
    else:
        lines.append(f"The service runs until Ctrl-C: {service.api_url}/docs, {service.flower_url}")
    console.print()
    console.print(Panel("\n".join(lines), border_style="green"))


def failed(number: int, title: str, error: Exception, logs: Path) -> None:
    text = f"Step {number} ({title}) failed: {error}" if number else f"Failed before the first step: {error}"
    console.print()
    console.print(Panel(escape(f"{text}\nLogs: {logs}"), title="The demo failed", border_style="red"))


def wait_for_interrupt() -> None:
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


def _table(*columns: str, lines: bool = False) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, show_lines=lines, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


class LossCurve:
    """A training's losses: shown while they come, drawn at the end."""

    def __init__(self) -> None:
        self.training: list[Point] = []
        self.held_out: list[Point] = []
        self._last_line = 0
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: JobEvent) -> None:
        if event.type == "evaluation":
            self.held_out.append((event.data["step"], event.data["loss"]))
            console.print(f"held-out loss {event.data['loss']:.3f} at step {event.data['step']}")
        elif event.type == "metrics":
            self.training.append((event.data["step"], event.data["loss"]))
            self._bar.update(self._task, description=loss_text(event.data))
        elif event.type == "progress":
            self._bar.update(self._task, completed=event.data["step"], total=event.data["total_steps"])
            self._print_sometimes(event.data)

    def _print_sometimes(self, progress: Mapping[str, Any]) -> None:
        """Without a terminal: a line for each tenth of the way."""
        tenth = progress["step"] * PLAIN_LINES // progress["total_steps"]
        if not console.is_terminal and tenth > self._last_line and self.training:
            self._last_line = tenth
            console.print(f"step {progress_text(progress)}  loss {self.training[-1][1]:.3f}")

    def draw_in_terminal(self) -> None:
        chart = loss_chart(self.training, self.held_out)
        if chart is not None:
            console.print(chart)

    def draw_png(self, path: Path) -> None:
        # Loaded here: it takes a second, and nothing before needs it.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*zip(*self.training, strict=True), color=TRAINING_COLOUR, alpha=0.3, label="training, each step")
        mean = running_mean(self.training, MEAN_STEPS)
        axes.plot(*zip(*mean, strict=True), color=TRAINING_COLOUR, label=f"training, mean of {MEAN_STEPS} steps")
        if self.held_out:
            axes.plot(*zip(*self.held_out, strict=True), "o--", color=HELD_OUT_COLOUR, label="held out")
        axes.set(title="Fine-tuning SmolLM2-135M on chatterbot-corpus", xlabel="step", ylabel="loss (nats a token)")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=150)
