"""A job's events as OpenAI's fine-tuning events: a message for each, and data where there are figures."""

import re
from typing import Any, Literal

from pydantic import BaseModel

from tandem.events import FIRST
from tandem.job import Job, JobEvent, JobState

Level = Literal["info", "warn", "error"]
ID_PREFIX = "ftevent-"
"""In front of a stream's own id, which is the cursor of a list."""
STREAM_ID = re.compile(r"([1-9][0-9]{0,19})-([0-9]{1,20})")
MAX_STREAM_NUMBER = 2**64 - 1
"""Redis refuses a larger one."""
TOKEN_ACCURACY = ("mean_token_accuracy", "token_accuracy", "accuracy")
"""Names under which a task reports its share of right answers, the one of single tokens first."""


class TuningEvent(BaseModel):
    """OpenAI's event of a fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Level
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


def cursor_of(event_id: str) -> str:
    """The place in the stream of an event that was shown. Raises ValueError for what was never shown."""
    stream_id = event_id.removeprefix(ID_PREFIX)
    if stream_id == FIRST:
        return stream_id
    parts = STREAM_ID.fullmatch(stream_id)
    if stream_id == event_id or parts is None or not all(int(part) <= MAX_STREAM_NUMBER for part in parts.groups()):
        raise ValueError(event_id)
    return stream_id


def event_view(job: Job, event: JobEvent) -> TuningEvent | None:
    """The event to show; None for one that OpenAI's clients have no use for: `progress` says less than `metrics`."""
    if event.type in ("metrics", "evaluation"):
        return _view(job, event, "info", _figures_text(job, event), figures(job, event), is_metrics=True)
    told = _said(job, event)
    if told is None:
        return None
    level, message = told
    data = {name: value for name, value in event.data.items() if name != "message"} or None
    return _view(job, event, level, message, None if event.type == "state" else data)


def figures(job: Job, event: JobEvent) -> dict[str, Any]:
    """The figures of a `metrics` or `evaluation` event by OpenAI's names; those without one keep ours."""
    names = {"loss": "train_loss"} if event.type == "metrics" else {"loss": "valid_loss"}
    accuracy = next((name for name in TOKEN_ACCURACY if name in event.data), None)
    if accuracy is not None:
        names[accuracy] = "train_mean_token_accuracy" if event.type == "metrics" else "valid_mean_token_accuracy"
    total = (job.progress or {}).get("total_steps")
    renamed = {names.get(name, name): value for name, value in event.data.items()}
    return renamed if total is None else {**renamed, "total_steps": total}


def _view(
    job: Job,
    event: JobEvent,
    level: Level,
    message: str,
    data: dict[str, Any] | None,
    *,
    is_metrics: bool = False,
) -> TuningEvent:
    # A stream's id begins with the time, but for the first event, which is in no stream.
    at = int(job.created_at) if event.id == FIRST else int(event.id.partition("-")[0]) // 1000
    return TuningEvent(
        id=f"{ID_PREFIX}{event.id}",
        created_at=at,
        level=level,
        message=message,
        type="metrics" if is_metrics else "message",
        data=data,
    )


def _figures_text(job: Job, event: JobEvent) -> str:
    step = event.data.get("step")
    total = (job.progress or {}).get("total_steps")
    place = f"Step {step}" if total is None else f"Step {step}/{total}"
    what = "training loss" if event.type == "metrics" else "validation loss"
    return f"{place}: {what}={event.data.get('loss', float('nan')):.2f}"


def _said(job: Job, event: JobEvent) -> tuple[Level, str] | None:
    data = event.data
    match event.type:
        case "state":
            return _said_of_state(job, JobState(data["state"]), int(data["attempt"]))
        case "warning":
            return "warn", str(data["message"])
        case "retry":
            return "warn", f"The attempt failed and is repeated: {data['failure']['message']}"
        case "checkpoint":
            return "info", f"Checkpoint kept at step {data['step']}"
        case "published_checkpoint":
            return "info", f"Checkpoint created at step {data['step']}: {data['adapter']}"
        case "resumed":
            return "info", f"Training goes on after step {data['step']}"
        case "data":
            return "info", f"The files were read: {data['examples']} training examples, {data['steps']} steps"
        case "cancel":
            return "info", "Cancellation was asked for"
        case "pause":
            return "info", "The job is paused"
        case "resume":
            return "info", "The job is resumed"
    return None


def _said_of_state(job: Job, state: JobState, attempt: int) -> tuple[Level, str]:
    match state:
        case JobState.QUEUED if attempt == 0:
            return "info", f"Created fine-tuning job: {job.id}"
        case JobState.QUEUED:
            return "info", "The job waits in its queue again"
        case JobState.RUNNING:
            again = f" again (attempt {attempt})" if attempt > 1 else ""
            return "info", f"Fine-tuning job started{again}"
        case JobState.SUCCEEDED:
            return "info", f"New fine-tuned model created: {(job.result or {}).get('adapter')}"
        case JobState.CANCELLED:
            return "info", "The job was cancelled"
        case JobState.EXPIRED:
            return "error", "The job was not finished by its deadline"
        case JobState.FAILED:
            reason = "unknown" if job.failure is None else job.failure.message
            return "error", f"The job failed: {reason}"
