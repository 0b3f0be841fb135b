"""The checkpoints of a training that were published as models, as OpenAI's clients read them."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel

from api.fine_tuning.event_view import figures
from tandem.adapters import AdapterManifest
from tandem.job import Job, JobEvent

NAME = re.compile(r".+:ckpt-step-(?P<step>\d+)")
"""How the adapter of a checkpoint is called."""


class CheckpointMetrics(BaseModel):
    """What was known of the training at the step."""

    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class TuningCheckpoint(BaseModel):
    """OpenAI's checkpoint of a fine-tuning job: a model to be asked like any other."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


def checkpoints_of(
    job: Job, adapters: Iterable[AdapterManifest], events: Iterable[JobEvent]
) -> list[TuningCheckpoint]:
    """The job's checkpoints, the latest step first. `events` are the job's, newest first."""
    published = [
        (int(named["step"]), adapter)
        for adapter in adapters
        if adapter.job_id == job.id and (named := NAME.fullmatch(adapter.id))
    ]
    if not published:
        return []
    known = [figures(job, event) for event in events if event.type in ("metrics", "evaluation")]
    return [
        TuningCheckpoint(
            id="ftckpt_" + hashlib.sha256(adapter.id.encode()).hexdigest()[:24],
            created_at=int(adapter.created_at),
            fine_tuned_model_checkpoint=adapter.id,
            fine_tuning_job_id=job.id,
            step_number=step,
            metrics=_metrics(step, known),
        )
        for step, adapter in sorted(published, key=lambda one: one[0], reverse=True)
    ]


def _metrics(step: int, newest_first: list[dict[str, Any]]) -> CheckpointMetrics:
    """The last figures up to the step, which need not be logged itself."""
    found: dict[str, Any] = {}
    for figure in newest_first:
        if figure.get("step", step + 1) <= step:
            for name, value in figure.items():
                found.setdefault(name, value)
    # The whole validation file is evaluated each time.
    for name in ("valid_loss", "valid_mean_token_accuracy"):
        found[f"full_{name}"] = found.get(name)
    shown = {name: value for name, value in found.items() if name in CheckpointMetrics.model_fields}
    return CheckpointMetrics(**(shown | {"step": step}))
