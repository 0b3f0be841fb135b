"""What the API shows: one model for each object, the public fields alone."""

from collections.abc import Collection, Sequence
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError

from tandem.adapter_aliases import AdapterAlias
from tandem.adapters import AdapterManifest, Checked, ImportedMethod
from tandem.catalogue import Catalogue, CatalogueEntry
from tandem.files import StoredFile
from tandem.job import Failure, Job, JobKind, JobState
from tandem.job_reads import LaneStatus
from tandem.specs import Priority, Task, job_spec_adapter
from tandem.specs.media import StoredPurpose
from tandem.specs.methods import Method
from tandem.workers import ResidentInfo, WorkerInfo

OWNED_BY_TANDEM = "tandem"
UNDATED = 0
"""`created` of a base model: OpenAI's shape wants a time, the catalogue has none."""

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """Part of a list; ask for more with `after=<last_id>` while `has_more`."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None

    @classmethod
    def of(cls, items: list[Item], ids: list[str], *, limit: int | None = None) -> Self:
        """The page of up to `limit` items; one more than that, if given, says that there are more."""
        shown = ids if limit is None else ids[:limit]
        return cls(
            data=items[: len(shown)],
            has_more=len(ids) > len(shown),
            first_id=shown[0] if shown else None,
            last_id=shown[-1] if shown else None,
        )


class Deleted(BaseModel):
    id: str
    object: str
    deleted: Literal[True] = True


class JobView(BaseModel):
    """A job as lists show it. Times are seconds since the epoch."""

    id: str
    object: Literal["job"] = "job"
    kind: JobKind
    task: str
    model: str
    adapter: str | None
    state: JobState
    priority: Priority
    attempt: int = Field(description="How often a worker has begun it")
    retries: int = Field(description="How many attempts failed for a passing reason and were repeated")
    crashes: int = Field(description="How many attempts were lost with their worker, which the job may have caused")
    cancel_requested: bool
    paused: bool = Field(description="It waits until it is resumed; if it still runs, it will soon be given back")
    dead: bool = Field(description="A dead letter: it failed for a passing reason until its tries were used up")
    requeued_from: str | None = Field(description="The dead letter whose work this job does anew")
    requeued_as: str | None = Field(description="Of a dead letter: the job that does its work anew")
    progress: dict[str, Any] | None
    failure: Failure | None
    created_at: float
    not_before: float | None = Field(description="It is not begun earlier")
    deadline: float | None = Field(description="It expires then, unless it has ended")
    started_at: float | None
    finished_at: float | None
    metadata: dict[str, str]
    webhook_note: str | None = Field(description="How the last delivery to its webhook went")

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls(**_public(job))


class JobDetail(JobView):
    """A job with all that was asked and answered."""

    spec: dict[str, Any] = Field(description="What was asked, with the defaults of all that was left out")
    result: Any = None

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls(**_public(job), spec=_whole_spec(job.spec), result=job.result)


def _public(job: Job) -> dict[str, Any]:
    fields = job.model_dump(include=set(JobView.model_fields))
    return fields | {"task": job.spec["task"], "adapter": job.spec.get("adapter"), "metadata": job.metadata}


def _whole_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """A stored spec has none of its defaults."""
    try:
        return job_spec_adapter.validate_python(spec).model_dump(mode="json")
    except ValidationError:
        # Taken by another version, whose limits were others: as it stands.
        return spec


class LaneView(BaseModel):
    """The jobs of one kind and model, which wait together."""

    lane: str
    object: Literal["lane"] = "lane"
    ready: int = Field(description="Jobs that a worker could begin now")
    paused_since: float | None = Field(description="Seconds since the epoch; null if the lane itself is not paused")

    @classmethod
    def of(cls, status: LaneStatus) -> Self:
        return cls(lane=status.lane, ready=status.ready, paused_since=status.paused_since)


class LanesView(BaseModel):
    """Every lane."""

    object: Literal["list"] = "list"
    data: list[LaneView]
    paused_since: float | None = Field(description="Since when the whole service is paused; null if it is not")


class ServiceView(BaseModel):
    """The whole service."""

    object: Literal["service"] = "service"
    paused_since: float | None = Field(description="Seconds since the epoch; null if it is not paused")


class FileView(BaseModel):
    """An uploaded file, in OpenAI's shape."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Seconds since the epoch")
    expires_at: int | None = Field(description="When it is deleted by itself; null: never")
    filename: str
    purpose: StoredPurpose
    status: Literal["processed"] = "processed"
    """Of OpenAI's shape: a file is whole when it is known, and its rows are checked when a job names it."""
    status_details: None = None

    @classmethod
    def of(cls, file: StoredFile) -> Self:
        return cls(
            **file.model_dump(include={"id", "bytes", "created_at", "expires_at", "filename", "purpose"}),
        )


class ResidencyView(BaseModel):
    """A model in one worker's memory."""

    worker: str
    device: str
    task: Task = Field(description="That its weights and head are loaded for")
    bytes: int = Field(description="On the device: weights, their copies, keys and values, adapters")
    load_seconds: float

    @classmethod
    def of(cls, worker: WorkerInfo, model: ResidentInfo) -> Self:
        return cls(
            worker=worker.id,
            device=worker.device,
            task=model.task,
            bytes=model.bytes,
            load_seconds=model.load_seconds,
        )


class ModelView(BaseModel):
    """What a job may name as its model, in OpenAI's shape and with what vLLM adds to it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    """The base model; of a name that was given to an adapter: that adapter."""
    parent: str | None
    """Of an adapter: the model that it was trained on."""
    base: str | None
    """The same, in this service's own word."""
    tasks: tuple[Task, ...]
    default_for: list[Task] = Field(default=[], description="Tasks whose jobs it does when they name no model")
    resident: list[ResidencyView] = Field(default=[], description="The workers that have it in memory")

    @classmethod
    def of_base(cls, entry: CatalogueEntry, catalogue: Catalogue, workers: Sequence[WorkerInfo]) -> Self:
        return cls(
            id=entry.name,
            created=UNDATED,
            owned_by=OWNED_BY_TANDEM,
            root=entry.name,
            parent=None,
            base=None,
            tasks=entry.tasks,
            default_for=[task for task in entry.tasks if catalogue.default(task).name == entry.name],
            resident=[
                ResidencyView.of(worker, model)
                for worker in workers
                for model in worker.models
                if model.name == entry.name
            ],
        )

    @classmethod
    def of_adapter(cls, manifest: AdapterManifest) -> Self:
        return cls(
            id=manifest.id,
            created=int(manifest.created_at),
            owned_by=manifest.owner,
            root=manifest.base,
            parent=manifest.base,
            base=manifest.base,
            tasks=(manifest.task,),
        )

    @classmethod
    def of_alias(cls, alias: AdapterAlias, manifest: AdapterManifest) -> Self:
        named = cls.of_adapter(manifest)
        return named.model_copy(
            update={
                "id": alias.name,
                "root": manifest.id,
                "created": int(alias.created_at),
                "owned_by": alias.owner,
            }
        )


class AdapterView(BaseModel):
    """A published adapter: where it came from and how good it was. Its files come with `/download`.

    Of one that was trained elsewhere neither job nor data are known.
    """

    id: str
    object: Literal["adapter"] = "adapter"
    owner: str
    base: str
    base_revision: str | None
    task: Task
    method: Method | ImportedMethod
    job_id: str | None
    training_data: str | None
    validation_data: str | None
    metrics: dict[str, Any]
    checked: Checked | None = Field(
        description="Of an imported adapter: whether its shapes were also compared with the base's weights, which "
        "may not be on the API's machine. What is left, the first worker that loads it checks."
    )
    pinned: bool = Field(description="Whether it keeps its slot on every worker that has loaded it")
    created_at: float

    @classmethod
    def of(cls, manifest: AdapterManifest, pinned: Collection[str] = ()) -> Self:
        return cls(**manifest.model_dump(exclude={"files"}), pinned=manifest.id in pinned)
