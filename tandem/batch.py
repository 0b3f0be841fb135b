"""A batch's record: its states, what it has come to, and its shards."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tandem.job import Failure
from tandem.specs.base import Priority
from tandem.specs.batch import BatchEndpoint
from tandem.specs.tasks import Task

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
TRANSITIONS: dict[BatchStatus, frozenset[BatchStatus]] = {
    "validating": frozenset({"in_progress", "failed", "cancelling"}),
    "in_progress": frozenset({"finalizing", "failed", "cancelling"}),
    "finalizing": frozenset({"completed", "expired", "failed"}),
    "cancelling": frozenset({"cancelled"}),
    "failed": frozenset(),
    "completed": frozenset(),
    "expired": frozenset(),
    "cancelled": frozenset(),
}
"""Which status may follow which. A cancelled batch keeps what was done, and is `cancelling` until that is written."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class BatchError(_Record):
    """A fault of a batch's file."""

    code: str
    message: str
    line: int | None = None
    """Counted from 1."""
    param: str | None = None


class BatchUsage(_Record):
    """Tokens of all rows that were answered."""

    input_tokens: int = 0
    cached_tokens: int = 0
    """Of these, tokens of prompts whose beginning had been read before."""
    output_tokens: int = 0


class Batch(_Record):
    """A batch as it stands in the store. Times are seconds since the epoch on the server's clock."""

    id: str
    owner: str
    weight: float = 1.0
    max_queued: int | None = None
    """What the API key of its owner was allowed when it was made: its shards are submitted in the owner's name."""
    operator: bool = False
    """Whether it was an operator's: its rows may name what is another owner's."""
    endpoint: BatchEndpoint
    input_file_id: str
    input_digest: str
    """The file's content, which is kept as long as this record: its owner may delete the file meanwhile."""
    completion_window: str
    priority: Priority = "low"
    """Of its shards."""
    metadata: dict[str, str] | None = None
    output_seconds: int | None = None
    """After so many seconds its output and error file are deleted; None: never."""

    status: BatchStatus = "validating"
    fence: int = 0
    """How often a clerk has taken it; a write with an older number is refused."""
    troubles: int = 0
    """How often a clerk has met an unforeseen error with it."""
    created_at: float
    expires_at: float
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    cancelling_at: float | None = None
    ended_at: float | None = None
    """When it was completed, or failed, expired or was cancelled."""

    model: str | None = None
    """The model of its first row, as written there."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    """Rows in all, answered, and failed."""
    rejected: tuple[str, ...] = ()
    """Parts (digests) with the rows that cannot be run, and why."""
    errors: tuple[BatchError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    usage: BatchUsage = BatchUsage()

    @property
    def has_ended(self) -> bool:
        return not TRANSITIONS[self.status]


class ShardEnd(_Record):
    """How a shard ended, kept here since its job is forgotten sooner than a long batch ends."""

    outcome: Literal["succeeded", "failed", "cancelled", "expired"]
    parts: tuple[str, ...] = ()
    """Digests of its answers' parts."""
    completed: int = 0
    failed: int = 0
    failure: Failure | None = None
    """Of one that has failed: what its unanswered rows are told."""


class Shard(_Record):
    """Some rows of a batch, in the order of the file, that one job runs."""

    number: int
    task: Task
    model: str
    rows: str
    """The digest of its rows."""
    first: int
    """The line of its first row."""
    count: int
    media: tuple[str, ...] = ()
    """Digests of the files that its rows name."""
    job_id: str | None = None
    """None until it is submitted."""
    end: ShardEnd | None = None
