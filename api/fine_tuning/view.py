"""A fine-tuning job as OpenAI's clients read it."""

import time
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError

from api.fine_tuning.request import BASE_LEARNING_RATE
from tandem.errors import DeadlineExceeded
from tandem.job import Job, JobState
from tandem.specs import FineTuneSpec, Hyperparameters
from tandem.specs.finetune import FineTuneTask
from tandem.specs.methods import Method

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
STATUS_OF: dict[JobState, Status] = {
    # Its files were checked before it was queued: no job is ever `validating_files`.
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.EXPIRED: "failed",
}
METRICS_FILE = "metrics.csv"
MULTIPLIER_DIGITS = 6
"""Of a learning rate that is divided again by what it was multiplied with."""


class TuningError(BaseModel):
    code: str
    message: str
    param: str | None


class HyperparametersView(BaseModel):
    """As they are used; `auto` is resolved."""

    n_epochs: int | None = Field(description="Null for a part of an epoch, which OpenAI's shape has no number for")
    batch_size: int
    learning_rate_multiplier: float


class DpoHyperparametersView(HyperparametersView):
    beta: float


class SupervisedView(BaseModel):
    hyperparameters: HyperparametersView


class DpoView(BaseModel):
    hyperparameters: DpoHyperparametersView


class MethodView(BaseModel):
    type: Literal["supervised", "dpo"]
    supervised: SupervisedView | None = None
    dpo: DpoView | None = None


class TandemView(BaseModel):
    """What is ours of a job, and has no place in OpenAI's shape."""

    state: JobState
    paused: bool = Field(description="It waits until it is resumed; if it still runs, it will soon be given back")
    cancel_requested: bool
    attempt: int
    task: FineTuneTask
    method: Method = Field(description="The kind of adapter and its options")
    hyperparameters: Hyperparameters
    progress: dict[str, Any] | None
    served: str | None = Field(description="How jobs run with the model: `mixed-batch` is with all others")


class FineTuningJob(BaseModel):
    """OpenAI's fine-tuning job. Times are seconds since the epoch; `tandem` is our own."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str = Field(description="The owner of the key that asked for it")
    status: Status
    error: TuningError | None
    training_file: str
    validation_file: str | None
    result_files: list[str] = Field(description="The metrics as CSV first, then whatever else there is")
    hyperparameters: HyperparametersView
    method: MethodView
    seed: int
    trained_tokens: int | None
    integrations: None = Field(default=None, description="None are run")
    metadata: dict[str, str] | None
    tandem: TandemView

    @classmethod
    def of(cls, job: Job) -> Self:
        spec = _spec(job)
        result: Mapping[str, Any] = job.result or {}
        hyperparameters = _hyperparameters(spec.hyperparameters)
        return cls(
            id=job.id,
            created_at=int(job.created_at),
            finished_at=None if job.finished_at is None else int(job.finished_at),
            estimated_finish=estimated_finish(job, time.time()),
            model=spec.model,
            fine_tuned_model=result.get("adapter"),
            organization_id=job.owner,
            status=STATUS_OF[job.state],
            error=_error(job),
            training_file=spec.training_file,
            validation_file=spec.validation_file,
            result_files=_result_files(result.get("files", {})),
            hyperparameters=hyperparameters,
            method=_method(spec, hyperparameters),
            seed=spec.hyperparameters.seed,
            trained_tokens=result.get("metrics", {}).get("tokens"),
            metadata=job.metadata or None,
            tandem=TandemView(
                state=job.state,
                paused=job.paused,
                cancel_requested=job.cancel_requested,
                attempt=job.attempt,
                task=spec.task,
                method=spec.method,
                hyperparameters=spec.hyperparameters,
                progress=job.progress,
                served=result.get("served"),
            ),
        )


def estimated_finish(job: Job, now: float) -> int | None:
    """When a running job will have ended, in seconds since the epoch, if it goes on as it has; None if unknown."""
    if job.state is not JobState.RUNNING or job.progress is None:
        return None
    left = job.progress.get("eta_seconds")
    return None if left is None else int(now + float(left))


def _spec(job: Job) -> FineTuneSpec:
    try:
        return FineTuneSpec.model_validate(job.spec)
    except ValidationError:
        # Taken by another version, whose limits were others: what names the job, with the defaults of all else.
        names = ("kind", "task", "model", "training_file", "validation_file")
        known = {name: job.spec[name] for name in names if name in job.spec}
        return FineTuneSpec.model_validate(known)


def _hyperparameters(hyperparameters: Hyperparameters) -> HyperparametersView:
    epochs = hyperparameters.epochs
    return HyperparametersView(
        n_epochs=int(epochs) if epochs.is_integer() else None,
        batch_size=hyperparameters.batch_size,
        learning_rate_multiplier=round(hyperparameters.learning_rate / BASE_LEARNING_RATE, MULTIPLIER_DIGITS),
    )


def _method(spec: FineTuneSpec, hyperparameters: HyperparametersView) -> MethodView:
    if spec.objective.type == "dpo":
        view = DpoHyperparametersView(**hyperparameters.model_dump(), beta=spec.objective.beta)
        return MethodView(type="dpo", dpo=DpoView(hyperparameters=view))
    return MethodView(type="supervised", supervised=SupervisedView(hyperparameters=hyperparameters))


def _error(job: Job) -> TuningError | None:
    if job.state is JobState.EXPIRED:
        error = DeadlineExceeded()
        return TuningError(code=error.code, message=error.message, param="deadline_seconds")
    if job.failure is None:
        return None
    return TuningError(code=job.failure.code, message=job.failure.message, param=job.failure.param)


def _result_files(files: Mapping[str, str]) -> list[str]:
    """The ids, the metrics' first: clients take the first for it."""
    return [files[name] for name in sorted(files, key=lambda name: (name != METRICS_FILE, name))]
