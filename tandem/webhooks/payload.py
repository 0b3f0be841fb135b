"""What a webhook tells: that a job has ended, how, and whose it was by its labels; never its result."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tandem.job import Failure, Job, JobKind, JobState


class EndedJob(BaseModel):
    """The job as it ended. Times are seconds since the epoch, as in the API."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: JobKind
    task: str
    model: str
    state: JobState
    attempt: int
    created_at: float
    finished_at: float
    failure: Failure | None
    metadata: dict[str, str]


class Payload(BaseModel):
    """The message's body, in Standard Webhooks' shape."""

    model_config = ConfigDict(frozen=True)

    type: Literal["job.succeeded", "job.failed", "job.cancelled", "job.expired"]
    timestamp: str
    """When the job ended, in ISO 8601 and UTC; the same in every try."""
    data: EndedJob

    @classmethod
    def of(cls, job: Job) -> "Payload":
        """Raises pydantic.ValidationError (a ValueError) for a job that has not ended."""
        ended = EndedJob.model_validate(
            {
                "id": job.id,
                "kind": job.kind,
                "task": job.spec.get("task"),
                "model": job.model,
                "state": job.state,
                "attempt": job.attempt,
                "created_at": job.created_at,
                "finished_at": job.finished_at,
                "failure": job.failure,
                "metadata": job.metadata,
            }
        )
        at = datetime.fromtimestamp(ended.finished_at, UTC).isoformat(timespec="milliseconds")
        return cls.model_validate({"type": f"job.{job.state}", "timestamp": at, "data": ended})


def message_id(job_id: str) -> str:
    """The message's id, the same in every try: a receiver that has seen it need not act again."""
    return f"msg_{job_id}"
