"""What the client hands out: jobs, files, adapters and models as they stood when they were read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tandem.job import JobEvent, JobKind, JobState

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
    progress: dict[str, Any] | None
    """What the last `progress` event said."""
    failure: dict[str, Any] | None
    """Of a failed job: `type`, `code`, `message`, `param`, `retryable`."""
    created_at: float
    started_at: float | None
    finished_at: float | None
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
            progress=record.get("progress"),
            failure=record.get("failure"),
            created_at=record["created_at"],
            started_at=record.get("started_at"),
            finished_at=record.get("finished_at"),
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
class Adapter:
    """A published adapter, as its manifest describes it."""

    id: str
    base: str
    """The model it was trained on."""
    task: str
    method: dict[str, Any]
    job_id: str
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
    record: dict[str, Any] = field(repr=False)
    """All that the service says of it."""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        return cls(record["id"], tuple(record.get("tasks", ())), record.get("base"), dict(record))
