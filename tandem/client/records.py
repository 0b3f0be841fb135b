"""What the client hands out: jobs, lanes, files, adapters and models as they stood when they were read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tandem.batch import TRANSITIONS, BatchStatus
from tandem.job import JobEvent, JobKind, JobState
from tandem.specs import Priority

if TYPE_CHECKING:
    from tandem.client.job_calls import JobCalls


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A job as it stood when it was read, and the calls that follow it. Times are seconds since the epoch."""

    id: str
    kind: JobKind
    task: str
    model: str
    adapter: str | None
    state: JobState
    attempt: int
    """How often a worker has begun it."""
    priority: Priority
    retries: int
    """How many attempts failed for a passing reason and were repeated."""
    crashes: int
    """How many attempts were lost with their worker, which the job may have caused."""
    paused: bool
    """It waits until it is resumed; if it still runs, it will soon be given back."""
    dead: bool
    """A dead letter: it failed for a passing reason until its tries were used up."""
    requeued_as: str | None
    """Of a dead letter: the job that does its work anew."""
    progress: dict[str, Any] | None
    """What the last `progress` event said."""
    failure: dict[str, Any] | None
    """Of a failed job: `type`, `code`, `message`, `param`, `retryable`."""
    created_at: float
    not_before: float | None
    """It is not begun earlier."""
    deadline: float | None
    """It expires then, unless it has ended."""
    started_at: float | None
    finished_at: float | None
    metadata: dict[str, str]
    """Labels that its producer gave it."""
    record: dict[str, Any] = field(repr=False)
    """All that the service says of it."""
    _client: "JobCalls" = field(repr=False, compare=False)

    @classmethod
    def read(cls, record: Mapping[str, Any], client: "JobCalls") -> Self:
        return cls(
            id=record["id"],
            kind=record["kind"],
            task=record["task"],
            model=record["model"],
            adapter=record.get("adapter"),
            state=JobState(record["state"]),
            attempt=record["attempt"],
            priority=record.get("priority", "normal"),
            retries=record.get("retries", 0),
            crashes=record.get("crashes", 0),
            paused=record.get("paused", False),
            dead=record.get("dead", False),
            requeued_as=record.get("requeued_as"),
            progress=record.get("progress"),
            failure=record.get("failure"),
            created_at=record["created_at"],
            not_before=record.get("not_before"),
            deadline=record.get("deadline"),
            started_at=record.get("started_at"),
            finished_at=record.get("finished_at"),
            metadata=record.get("metadata", {}),
            record=dict(record),
            _client=client,
        )

    def refresh(self) -> Self:
        """The job as it stands now. Raises what `Tandem.get` raises."""
        return type(self).read(self._client.read_job(self.id), self._client)

    def wait(self, timeout: float | None = None) -> Any:
        """The job's result. Raises what `Tandem.wait` raises."""
        return self._client.wait(self, timeout)

    def events(self, timeout: float | None = None) -> Iterator[JobEvent]:
        """What happens with it until it ends. Raises what `Tandem.events` raises."""
        return self._client.events(self, timeout=timeout)

    def cancel(self) -> "JobHandle":
        """Ask that it stops. Raises what `Tandem.cancel` raises."""
        return self._client.cancel(self)

    def pause(self) -> "JobHandle":
        """Hold it back until it is resumed. Raises what `Tandem.pause` raises."""
        return self._client.pause(self)

    def resume(self) -> "JobHandle":
        """Let it go on. Raises what `Tandem.resume` raises."""
        return self._client.resume(self)

    def requeue(self) -> "JobHandle":
        """Of a dead letter: do its work anew, as a new job. Raises what `Tandem.requeue` raises."""
        return self._client.requeue(self)


@dataclass(frozen=True, slots=True)
class Lane:
    """How the jobs of one kind and model stand."""

    name: str
    ready: int
    """Jobs that a worker could begin now."""
    paused_since: float | None
    """Seconds since the epoch; None if the lane itself is not paused."""
    record: dict[str, Any] = field(repr=False)
    """All that the service says of it."""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        return cls(record["lane"], record["ready"], record["paused_since"], dict(record))


@dataclass(frozen=True, slots=True)
class Lanes:
    """Every lane by name, and the service's own pause."""

    lanes: tuple[Lane, ...]
    paused_since: float | None
    """Of the whole service, in seconds since the epoch; None if it is not paused."""
    record: dict[str, Any] = field(repr=False)
    """All that the service says of them."""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        return cls(tuple(Lane.read(lane) for lane in record["data"]), record["paused_since"], dict(record))


@dataclass(frozen=True, slots=True)
class UploadedFile:
    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    """Seconds since the epoch."""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        return cls(**{name: record[name] for name in ("id", "filename", "purpose", "bytes", "created_at")})


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as it stood when it was read. Times are seconds since the epoch."""

    id: str
    status: BatchStatus
    endpoint: str
    total: int
    """Rows, known once the file is validated."""
    completed: int
    failed: int
    errors: tuple[dict[str, Any], ...]
    """Faults of the file or of single rows: `line`, `code`, `message`, `param`."""
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    record: dict[str, Any] = field(repr=False)
    """All that the service says of it, in OpenAI's form."""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        named = ("id", "status", "endpoint", "output_file_id", "error_file_id", "created_at", "expires_at")
        return cls(
            **{name: record[name] for name in named},
            **{name: record["request_counts"][name] for name in ("total", "completed", "failed")},
            errors=tuple((record["errors"] or {}).get("data", ())),
            record=dict(record),
        )

    @property
    def has_ended(self) -> bool:
        return not TRANSITIONS[self.status]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A published adapter, as its manifest describes it."""

    id: str
    base: str
    """The model it was trained on."""
    task: str
    method: dict[str, Any]
    job_id: str | None
    """The training; None for an adapter that was trained elsewhere."""
    metrics: dict[str, Any]
    created_at: float
    """Seconds since the epoch."""
    record: dict[str, Any] = field(repr=False)
    """All that the service says of it."""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        named = ("id", "base", "task", "method", "job_id", "metrics", "created_at")
        return cls(**{name: record[name] for name in named}, record=dict(record))


@dataclass(frozen=True, slots=True)
class Model:
    """What a job may name as its model: a base of the catalogue, or an adapter."""

    id: str
    tasks: tuple[str, ...]
    base: str | None
    """Of an adapter: the model it was trained on."""
    default_for: tuple[str, ...]
    """Tasks whose jobs it does when they name no model."""
    resident: tuple[dict[str, Any], ...]
    """The workers that have it in memory: `worker`, `device`, `task`, `bytes`, `load_seconds`."""
    record: dict[str, Any] = field(repr=False)
    """All that the service says of it."""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            record["id"],
            tuple(record.get("tasks", ())),
            record.get("base"),
            tuple(record.get("default_for", ())),
            tuple(record.get("resident", ())),
            dict(record),
        )
