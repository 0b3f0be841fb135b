"""A model in memory with what serves it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.catalogue import CatalogueEntry
from tandem.specs import Task
from tandem.workers import BatchedWork, EngineWork, ResidentInfo
from worker.apart import ApartAdapters
from worker.batchers import Batchers
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.tokens.constraints import ConstraintCompiler

SAME_WEIGHTS: dict[Task, Task] = {"sentence-similarity": "feature-extraction"}
"""Tasks that another one's resident model does as well."""

ADAPTERS = "adapters"
"""Names the batcher of an encoder's adapters, whatever their tasks: they share forwards."""


def resident_task(task: Task) -> Task:
    """The task under which a model is resident to do `task`."""
    return SAME_WEIGHTS.get(task, task)


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model in memory with what serves it: an engine for decoders, batchers for all else."""

    entry: CatalogueEntry
    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    """None where the task has no texts."""
    engine: EngineLoop | None
    batchers: Batchers
    weight_bytes: int
    """Of its weights on the device, and of the copies that make an encoder's faster; an engine counts its own."""
    load_seconds: float
    unwatch: Callable[[], None]
    """Ends the stall watch over it."""
    constraints: ConstraintCompiler | None = None
    """For the texts of the engine, where there is one."""
    apart: ApartAdapters | None = None
    """Beside the engine what its batch cannot hold, and all adapters of an encoder-decoder."""

    @property
    def bytes(self) -> int:
        """What it takes on the device now: weights, their faster copies, keys and values, tables of adapters.

        Adapters that are served apart are left out: each is small, and they are few.
        """
        return self.weight_bytes + (self.batchers.bytes if self.engine is None else self.engine.engine.bytes)

    def info(self) -> ResidentInfo:
        """As the worker announces it."""
        work = tuple(
            BatchedWork(task=task, unit=self.batchers.task(task).unit, **asdict(counts))
            for task, counts in self.batchers.counts().items()
        )
        return ResidentInfo(
            name=self.entry.name,
            task=self.task,
            bytes=self.bytes,
            load_seconds=self.load_seconds,
            work=work,
            engine=None if self.engine is None else _engine_work(self.engine.engine),
        )

    def close(self) -> None:
        if self.engine is not None:
            self.engine.stop()
        self.batchers.stop()
        if self.apart is not None:
            self.apart.stop()
        # Last, so that a hang on the way here is seen.
        self.unwatch()


def _engine_work(engine: Engine) -> EngineWork:
    occupancy = engine.occupancy
    return EngineWork(
        slots=occupancy.running + occupancy.free_sequence_slots,
        slot_tokens=engine.max_context,
        kv_bytes=engine.kv_bytes,
        waiting=occupancy.waiting,
        running=occupancy.running,
        **asdict(engine.counts),
    )
