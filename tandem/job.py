"""The job's record: its states, the table of transitions, and what is read back from the store."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tandem.errors import TandemError
from tandem.specs import Priority, RetryPolicy

JobKind = Literal["inference", "finetune", "batch"]
"""`batch` is a shard of one."""


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        return not TRANSITIONS[self]


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.EXPIRED}),
    # Back to queued: the lease was lost, the attempt failed for a passing reason, the worker drained, a pause.
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.QUEUED}
    ),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}
"""Which state may follow which. transitions/*.lua execute it; a test holds the two together."""


class Failure(BaseModel):
    """Why a job failed: type and message, never a pickled exception."""

    model_config = ConfigDict(frozen=True)

    type: str
    code: str
    message: str
    param: str | None = None
    retryable: bool = False

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """The failure to record for an exception; only ours show their text as it is."""
        if isinstance(error, TandemError):
            return cls(
                type=type(error).__name__,
                code=error.code,
                message=error.message,
                param=error.param,
                retryable=error.retryable,
            )
        return cls(
            type=type(error).__name__,
            code=TandemError.code,
            message=f"{type(error).__name__}: {error}",
        )


class Job(BaseModel):
    """A job as it stands in the store. Times are seconds since the epoch on the server's clock."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: JobKind
    state: JobState
    owner: str
    model: str
    lane: str
    priority: Priority = "normal"
    spec: dict[str, Any]
    """What was asked; fields at their defaults are left out."""
    attempt: int = 0
    """How often it was claimed; the number is the fence of the running attempt."""
    crashes: int = 0
    """How many attempts ended with a lost lease for which the job may be to blame."""
    retries: int = 0
    """How many attempts failed for a passing reason and were repeated."""
    cancel_requested: bool = False
    paused: bool = False
    """It waits, or once it is given back will wait, until it is resumed."""
    dead: bool = False
    """A dead letter: it failed although trying again could have helped, and its tries are used up."""
    requeued_from: str | None = None
    requeued_as: str | None = None
    """Of a dead letter: the job that does its work anew."""
    webhook_note: str | None = None
    """How the last delivery to its webhook went."""
    worker: str | None = None
    progress: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    """What an attempt has left for the next one to go on from."""
    result: Any = None
    failure: Failure | None = None
    created_at: float
    not_before: float | None = None
    """It is not claimed earlier."""
    deadline: float | None = None
    """It expires then, wherever it is."""
    started_at: float | None = None
    finished_at: float | None = None
    sequence: int
    """The job's number in the order of submission: the cursor of lists."""

    @property
    def retry(self) -> RetryPolicy:
        return RetryPolicy.model_validate(self.spec.get("retry", {}))

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.spec.get("metadata", {}))


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event of a job, with the id after which reading can go on."""

    id: str
    type: str
    """`state`, `progress`, `metrics`, `evaluation`, `tokens`, `retry`, `cancel`, `pause`, `resume`, `checkpoint` …"""
    data: dict[str, Any]

    @property
    def ends_the_job(self) -> bool:
        return self.type == "state" and JobState(self.data["state"]).is_terminal
