"""The workers that are alive, as they say themselves.

Keys: `tandem:worker:<id>` the worker's own description (JSON), which expires unless it is renewed.
"""

from pydantic import BaseModel, ConfigDict

from tandem.function_library import PREFIX
from tandem.job_store import JobStore
from tandem.settings import Role
from tandem.specs import Task


class BatchedWork(BaseModel):
    """What a worker's batches of one task have done since it loaded the model."""

    model_config = ConfigDict(frozen=True)

    task: str
    """Or `adapters`, for those of an encoder, and embeddings of their base beside them."""
    unit: str
    """Of the costs: tokens, pixels or samples."""
    batches: int
    rows: int
    cost: int
    """Of all rows, without padding."""
    padded_cost: int
    wait_seconds: float
    """Sum over the rows of the time between arrival and forward."""


class EngineWork(BaseModel):
    """What the continuous batch of a model is doing, and has done since the worker loaded it."""

    model_config = ConfigDict(frozen=True)

    slots: int
    """Sequences that can run together."""
    slot_tokens: int
    kv_bytes: int
    """Of the slots' keys and values."""
    waiting: int
    running: int
    steps: int
    sequences: int
    """Admitted since the model was loaded."""
    prompt_tokens: int
    reused_tokens: int
    """Of these, whose keys and values were there from a prompt that began the same."""
    generated_tokens: int
    wait_seconds: float
    """Sum over the sequences of the time that they waited for a slot."""
    parked: int
    """Times that a sequence gave its slot to a more urgent one."""
    adapter_loads: int
    """Adapters copied into a slot of the bank."""


class ResidentInfo(BaseModel):
    """A model in a worker's memory."""

    model_config = ConfigDict(frozen=True)

    name: str
    task: Task
    """That its weights and head are loaded for."""
    bytes: int
    """On the device: weights, their faster copies, keys and values, tables of adapters."""
    load_seconds: float
    work: tuple[BatchedWork, ...] = ()
    engine: EngineWork | None = None
    """None for models that are not served in the continuous batch."""


class WorkerInfo(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    host: str
    pid: int
    device: str
    roles: tuple[Role, ...]
    adapter_slots: int | None = None
    """Of each of its models; None of a worker from before it was told."""
    resident: tuple[str, ...]
    """Names of the models in its memory."""
    models: tuple[ResidentInfo, ...] = ()
    """The same, with what each is loaded for, what it weighs and what it has done."""
    running: int
    """Attempts that it executes now."""
    trained_seconds: float = 0.0
    """For how long trainings have held the device since it started."""
    quantum_seconds: float = 0.0
    """How long a turn of theirs lasts at present while serving waits."""
    started_at: float


class WorkerRegistry:
    def __init__(self, jobs: JobStore) -> None:
        self._redis, self._guard = jobs.redis, jobs.guard

    def announce(self, info: WorkerInfo, *, seconds: float) -> None:
        """Be listed for so long. Raises QueueUnavailable."""
        with self._guard():
            self._redis.set(f"{PREFIX}worker:{info.id}", info.model_dump_json(), px=int(seconds * 1000))

    def withdraw(self, worker_id: str) -> None:
        with self._guard():
            self._redis.delete(f"{PREFIX}worker:{worker_id}")

    def list(self) -> list[WorkerInfo]:
        with self._guard():
            keys = sorted(self._redis.scan_iter(f"{PREFIX}worker:*"))
            records = self._redis.mget(keys) if keys else []
        return [WorkerInfo.model_validate_json(record) for record in records if record]
