"""Tables and lines, and how the commands print them; nothing here asks the service."""

import json
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tandem.client import Adapter, BatchRecord, JobEvent, JobHandle, Lanes, Model
from tandem.job import JobState

STATE_STYLES = {
    JobState.QUEUED: "yellow",
    JobState.RUNNING: "cyan",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "magenta",
    JobState.EXPIRED: "magenta",
}
FIRST = "0-1"
"""The id of a job's first event."""
PIPE_COLUMNS = 200
"""Width where the output is no terminal: a line stays one line for `grep` and `awk`."""


def output() -> Console:
    """Standard output: as wide as the terminal, and wide enough for every column where it is none."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_COLUMNS)


def print_table(made: Table, *, empty: str = "") -> None:
    """The table; `empty` instead where it has no rows."""
    if made.row_count:
        output().print(made)
    else:
        typer.echo(empty)


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(*columns: str) -> Table:
    """An empty table in the one look that all commands have."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def jobs_table(jobs: Iterable[JobHandle], now: float) -> Table:
    """Jobs, one a line; `now` is in seconds since the epoch."""
    made = table("job", "kind", "task", "model", "priority", "state", "attempts", "progress", "age", "took")
    for job in jobs:
        made.add_row(
            job.id,
            job.kind,
            job.task,
            job.adapter or job.model,
            job.priority,
            Text(state_text(job, now), STATE_STYLES[job.state]),
            attempts_text(job),
            progress_text(job.progress),
            duration_text(now - job.created_at),
            "" if job.started_at is None else duration_text((job.finished_at or now) - job.started_at),
        )
    return made


def dead_letters_table(jobs: Iterable[JobHandle], now: float) -> Table:
    """Dead letters, one a line, with what each died of."""
    made = table("job", "kind", "task", "model", "attempts", "died", "of")
    for job in jobs:
        failure = job.failure or {}
        made.add_row(
            job.id,
            job.kind,
            job.task,
            job.adapter or job.model,
            attempts_text(job),
            "" if job.finished_at is None else f"{duration_text(now - job.finished_at)} ago",
            f"{failure.get('code', '')}: {failure.get('message', '')}",
        )
    return made


def batches_table(batches: Iterable[BatchRecord], now: float) -> Table:
    made = table("batch", "endpoint", "status", "rows", "failed", "age")
    for batch in batches:
        rows = f"{batch.completed + batch.failed}/{batch.total}"
        age = duration_text(now - batch.created_at)
        made.add_row(batch.id, batch.endpoint, batch.status, rows, str(batch.failed), age)
    return made


def lanes_table(lanes: Lanes, now: float) -> Table:
    made = table("lane", "ready", "paused")
    for lane in lanes.lanes:
        since = lane.paused_since
        made.add_row(lane.name, str(lane.ready), "" if since is None else f"for {duration_text(now - since)}")
    return made


def state_text(job: JobHandle, now: float) -> str:
    """The state, and what holds the job back or is asked of it."""
    if job.dead:
        return f"{job.state}, dead" if job.requeued_as is None else f"{job.state}, requeued"
    if job.state is JobState.RUNNING and job.record.get("cancel_requested"):
        return f"{job.state}, stopping"
    if job.paused:
        return f"{job.state}, {'paused' if job.state is JobState.QUEUED else 'pausing'}"
    if job.state is JobState.QUEUED and job.not_before is not None and job.not_before > now:
        return f"{job.state}, in {duration_text(job.not_before - now)}"
    return job.state


def attempts_text(job: JobHandle) -> str:
    """`3 (1 retried, 1 crashed)`: how often it was begun, and why again."""
    why = [f"{count} {what}" for count, what in ((job.retries, "retried"), (job.crashes, "crashed")) if count]
    return f"{job.attempt} ({', '.join(why)})" if why else str(job.attempt)


def adapters_table(adapters: Iterable[Adapter], now: float) -> Table:
    made = table("adapter", "base", "method", "loss before", "loss after", "age")
    for adapter in adapters:
        made.add_row(
            adapter.id,
            adapter.base,
            method_text(adapter.method),
            number_text(adapter.metrics.get("validation_loss_before")),
            number_text(adapter.metrics.get("validation_loss_after")),
            duration_text(now - adapter.created_at),
        )
    return made


def method_text(method: Mapping[str, Any]) -> str:
    """`lora r=8, dora` or `prefix-tuning, 20 virtual tokens`: the kind of an adapter and what it costs to serve."""
    if method["type"] == "lora":
        options = [option for option in ("rslora", "dora") if method.get(f"use_{option}")]
        return ", ".join([f"lora r={method['r']}", *options])
    kind = method["type"]
    if kind == "imported":
        rank = "" if method["r"] is None else f" r={method['r']}"
        kind = f"{method['peft_type']}{rank}, imported"
    tokens = method.get("num_virtual_tokens")
    return kind if tokens is None else f"{kind}, {tokens} virtual tokens"


def record_table(record: Mapping[str, Any], *, times: Collection[str]) -> Table:
    """One object, a line for each thing known of it; `times` names those that are seconds since the epoch."""
    made = table("", "")
    made.show_header = False
    for name, value in record.items():
        if isinstance(value, Mapping):
            shown = "\n".join(f"{key}: {_short_text(inner)}" for key, inner in value.items())
        elif name in times and value is not None:
            shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
        else:
            shown = number_text(value)
        made.add_row(Text(name, "bold"), shown)
    return made


def models_table(models: Iterable[Model]) -> Table:
    made = table("model", "tasks", "base", "in memory of", "weights", "loaded in")
    for model in models:
        # A task whose jobs go to it when they name no model has a star.
        tasks = ", ".join(f"{task}*" if task in model.default_for else task for task in model.tasks)
        made.add_row(
            model.id,
            tasks,
            model.base or "",
            "\n".join(f"{place['worker']} ({place['device']})" for place in model.resident),
            "\n".join(size_text(place["bytes"]) for place in model.resident),
            "\n".join(duration_text(place["load_seconds"]) for place in model.resident),
        )
    return made


def size_text(size: int) -> str:
    """`540 MB`: in the largest decimal unit that fits, for people."""
    for unit, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= length:
            return f"{size / length:.3g} {unit}"
    return f"{size} B"


def progress_text(progress: Mapping[str, Any] | None) -> str:
    """`30/140` of a training's steps or of a job's inputs; empty where nothing is known."""
    if not progress:
        return ""
    done, total = progress.get("step", progress.get("done")), progress.get("total_steps", progress.get("total"))
    if done is None:
        return ""
    return f"{done}/{total}" if total else str(done)


def duration_text(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min`, `2 h`, `5 d`: the largest unit that fits, for people."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def number_text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _short_text(value: object) -> str:
    """A value inside another one; of a long list, such as a training's history, only its length."""
    return f"{len(value)} entries (--json shows them)" if isinstance(value, list) else number_text(value)


def event_line(event: JobEvent) -> Text:
    """An event as one line."""
    line = Text(f"{event_time(event)}  {event.type:<10} ", "dim")
    match event.type:
        case "state":
            state = JobState(event.data["state"])
            attempt = event.data.get("attempt")
            return line.append(state, STATE_STYLES[state]).append(f"  attempt {attempt}" if attempt else "", "dim")
        case "progress":
            left = event.data.get("eta_seconds")
            return line.append(progress_text(event.data)).append(
                f"  {duration_text(left)} left" if left else "", "dim"
            )
        case "data":
            return line.append(data_text(event.data))
        case "warning":
            return line.append(event.data["message"], "yellow")
        case "retry":
            failure = event.data["failure"]
            return line.append(
                f"again at {clock_text(event.data['at'])} after {failure['code']}: {failure['message']}"
            )
        case "metrics":
            return line.append(f"step {event.data['step']}  {loss_text(event.data)}")
        case _:
            return line.append("  ".join(f"{name} {number_text(value)}" for name, value in event.data.items()))


def loss_text(metrics: Mapping[str, Any]) -> str:
    """The loss, and the speed where it is known."""
    speed, memory = metrics.get("tokens_per_second"), metrics.get("memory_bytes")
    told = [f"loss {metrics['loss']:.3f}"]
    if speed:
        told.append(f"{speed:.0f} tokens/s")
    if memory:
        told.append(size_text(memory))
    return "  ".join(told)


def data_text(report: Mapping[str, Any]) -> str:
    """What a training found in its files: `1200 rows, 96k tokens, 150 steps; 3 broken rows, 2 leaked`."""
    parts = []
    for name in ("training", "validation"):
        file = report[name]
        if file is not None:
            odd = [
                f"{file[count]} {what}"
                for count, what in (
                    ("broken_rows", "broken"),
                    ("truncated_rows", "cut"),
                    ("dropped_rows", "dropped"),
                    ("duplicate_rows", "twice"),
                )
                if file[count]
            ]
            parts.append(
                f"{name}: {file['rows']} rows, {file['tokens']} tokens" + (f" ({', '.join(odd)})" if odd else "")
            )
    if report["leaked_rows"]:
        parts.append(f"{report['leaked_rows']} validation rows are training rows too")
    parts.append(f"{report['steps']} steps")
    return "; ".join(parts)


def event_time(event: JobEvent) -> str:
    """The event's local time of day. A stream's ids begin with milliseconds since the epoch; but the first event of
    a job is in no stream, and says by itself when it was."""
    at = event.data["at"] if event.id == FIRST else int(event.id.partition("-")[0]) / 1000
    return clock_text(at)


def clock_text(at: float) -> str:
    """The local time of day of a time in seconds since the epoch."""
    return time.strftime("%H:%M:%S", time.localtime(at))
