"""Loads a catalogue entry: safetensors only, no code of the model's own, an engine or batchers around it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import pipeline as library_pipeline

from tandem.catalogue import CatalogueEntry
from tandem.errors import InvalidModel
from tandem.settings import WorkerSettings
from tandem.specs import Task
from tandem.specs.finetune import TEXT_TO_TEXT
from tandem.workers import BatchedWork, EngineWork, ResidentInfo
from worker.apart import ApartAdapter, ApartAdapters, build_apart
from worker.batchers import Batchers
from worker.device import KV_SHARE, choose_dtype, memory_bytes
from worker.encoders import EncoderBatcher
from worker.encoders.adapted_body import AdaptedBody
from worker.encoders.adapter_task import AdapterTask
from worker.engine.engine import Engine
from worker.engine.kv.choice import stored_dtype
from worker.engine.kv.slots import fit_slots
from worker.engine.linears.products import speed_up_encoder
from worker.engine.loop import EngineLoop
from worker.engine.self_check import self_check
from worker.engine.support import kv_shape, unsupported_reason
from worker.engine.text.detokenizer import Tokenizer
from worker.engine.tokens.constraints import ConstraintCompiler
from worker.pipeline_loading import load_pipeline, pipeline_over
from worker.stall import ProgressSource, StallWatch
from worker.tasks import ENCODER_TASKS, MODEL_CLASSES, PIPELINE_TASKS
from worker.tasks.batched_task import BatchedTask
from worker.tasks.feature_extraction import FeatureExtraction
from worker.tasks.sentence_similarity import SentenceSimilarity
from worker.tasks.text_generation import TextGenerationByGenerate
from worker.training.turns import Turns

log = logging.getLogger(__name__)

one_loads = threading.Lock()
"""Whoever loads or builds a model holds it: `from_pretrained` patches torch for the whole process meanwhile. Two at
once broke 2 of 5 processes (three models in three threads): `Cannot copy out of meta tensor`, for good. transformers
names no thread-safe way."""


MIN_SLOT_TOKENS = 16
"""A slot that holds fewer tokens answers nothing: the same bound as that of TANDEM_SLOT_TOKENS."""

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
    bytes: int
    """Of its weights on the device, and of the copies that make them faster."""
    load_seconds: float
    unwatch: Callable[[], None]
    """Ends the stall watch over it."""
    constraints: ConstraintCompiler | None = None
    """For the texts of the engine, where there is one."""
    apart: ApartAdapters | None = None
    """Beside the engine what its batch cannot hold, and all adapters of an encoder-decoder."""

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


class Loader:
    def __init__(self, settings: WorkerSettings, device: torch.device, turns: Turns, stalls: StallWatch) -> None:
        self._settings = settings
        self._device = device
        self._turns = turns
        self._stalls = stalls

    def measure(self, entry: CatalogueEntry, task: Task) -> int:
        """Bytes of an entry on the device, resident for `task`: its weights, and at most as much for packed copies.

        Raises InvalidModel if it has no safetensors.
        """
        sizes = _weight_files(entry)
        if not sizes:
            raise InvalidModel(
                f"model {entry.name!r} has no *.safetensors in {entry.folder or entry.hub}; run `make install` "
                "for the default models, or convert it with save_pretrained",
                param="model",
            )
        return sum(sizes) * (2 if self._packs(task) else 1)

    def _packs(self, task: Task) -> bool:
        """Whether the linear layers get copies that the CPU multiplies faster."""
        is_ours = task == "text-generation" or task in ENCODER_TASKS
        return is_ours and self._device.type == "cpu" and self._settings.packed_linears == "auto"

    def load(self, entry: CatalogueEntry, task: Task) -> ResidentModel:
        """Raises InvalidModel, saying what the library said."""
        started = time.monotonic()
        dtype = choose_dtype(entry.dtype, self._device)
        source = str(entry.folder or entry.hub)
        try:
            if task in PIPELINE_TASKS:
                pipeline = self._pipeline(entry, task, source, dtype)
                model, tokenizer = pipeline.model, pipeline.tokenizer
            else:
                pipeline = None
                model, tokenizer = self._model(entry, task, source, dtype)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise InvalidModel(
                f"model {entry.name!r} cannot be loaded from {source} for {task}: {error}", param="model"
            ) from error
        model.eval().requires_grad_(False)
        engine = None
        packed_bytes = 0
        if task == "text-generation":
            reason = unsupported_reason(model) or self_check(model)
            if reason is None:
                engine = self._engine(entry, model, tokenizer)
                packed_bytes = engine.engine.packed_bytes
            else:
                log.warning("%s is served by the library's generate(), not by the engine: %s", entry.name, reason)
                pipeline = library_pipeline(task, model=model, tokenizer=tokenizer, device=self._device)
        elif self._packs(task):
            packed_bytes = speed_up_encoder(model)
        batchers = Batchers(lambda asked: self._batcher(asked, model, tokenizer, pipeline))
        has_trees = engine is not None or task in TEXT_TO_TEXT
        apart = ApartAdapters(partial(self._apart, model, tokenizer)) if has_trees else None
        if engine is None:
            batchers.get(task)  # its constructor refuses a model that cannot do the task
        seconds = time.monotonic() - started
        log.info("%s resident for %s (%s) after %.1f s", entry.name, task, dtype, seconds)
        return ResidentModel(
            entry,
            task,
            model,
            tokenizer,
            engine,
            batchers,
            bytes=sum(parameter.nbytes for parameter in model.parameters()) + packed_bytes,
            load_seconds=seconds,
            unwatch=self._watch(entry, *(work for work in (engine or batchers, apart) if work is not None)),
            apart=apart,
            constraints=None if engine is None else _constraints(engine.engine, tokenizer),
        )

    def _model(self, entry: CatalogueEntry, task: str, source: str, dtype: torch.dtype) -> tuple[Any, Any]:
        options: dict[str, Any] = {
            "revision": entry.revision,
            "trust_remote_code": False,
            "local_files_only": entry.folder is not None,
        }
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        with one_loads:
            model = MODEL_CLASSES[task].from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
        return model.to(self._device), tokenizer

    def _pipeline(self, entry: CatalogueEntry, task: str, source: str, dtype: torch.dtype) -> Any:
        with one_loads:
            return load_pipeline(
                task,
                source,
                revision=entry.revision,
                dtype=dtype,
                device=self._device,
            )

    def _batcher(self, task: str, model: Any, tokenizer: Any, pipeline: Any) -> EncoderBatcher:
        made: BatchedTask[Any, Any]
        if task == "text-generation":
            made = TextGenerationByGenerate(pipeline)
        elif pipeline is not None:
            made = PIPELINE_TASKS[task](pipeline)
        elif task == ADAPTERS:
            settings = self._settings
            body = AdaptedBody(model, adapter_slots=settings.adapter_slots, adapter_rank=settings.adapter_rank)
            made = AdapterTask(body, tokenizer)
        elif task == "sentence-similarity":
            made = SentenceSimilarity(FeatureExtraction(model, tokenizer))
        else:
            made = ENCODER_TASKS[task](model, tokenizer)
        batcher = EncoderBatcher(
            made,
            serving_turn=self._turns.serving,
            budget=self._budget(made.unit),
            max_wait_seconds=self._settings.encoder_wait_seconds,
        )
        batcher.start()
        return batcher

    def _budget(self, unit: str) -> int:
        budgets = {
            "tokens": self._settings.encoder_tokens,
            "pixels": self._settings.encoder_pixels,
            "samples": self._settings.encoder_samples,
        }
        return budgets[unit]

    def _engine(
        self, entry: CatalogueEntry, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> EngineLoop:
        settings = self._settings
        limits = [settings.slot_tokens, entry.max_tokens, getattr(model.config, "max_position_embeddings", None)]
        slots, slot_tokens = self._fit_slots(entry, model, min(limit for limit in limits if limit is not None))
        engine = Engine(
            model,
            # transformers' type of `decode` also covers batches; one list of ids gives one text.
            cast("Tokenizer", tokenizer),
            sequence_slots=slots,
            slot_tokens=slot_tokens,
            step_tokens=settings.step_tokens,
            chunk_tokens=settings.chunk_tokens,
            adapter_slots=settings.adapter_slots,
            adapter_rank=settings.adapter_rank,
            kv_reuse=settings.kv_reuse,
            packed_linears=self._packs("text-generation"),
            quantize=settings.quantize == "int8",
            gpu_kernels=settings.gpu_kernels == "auto",
            cpu_kernels=settings.cpu_kernels == "auto",
        )
        loop = EngineLoop(engine, serving_turn=self._turns.serving)
        loop.start()
        return loop

    def _fit_slots(self, entry: CatalogueEntry, model: PreTrainedModel, context: int) -> tuple[int, int]:
        """Slots, and tokens of each, that the memory for keys and values allows."""
        budget = self._settings.kv_bytes or int(memory_bytes(self._device) * KV_SHARE)
        dtype = stored_dtype(model, cpu_kernels=self._settings.cpu_kernels == "auto")
        token_bytes = kv_shape(model).token_bytes(dtype)
        wanted = self._settings.sequence_slots
        slots, tokens = fit_slots(wanted, context, token_bytes=token_bytes, budget_bytes=budget)
        if tokens < MIN_SLOT_TOKENS:
            raise InvalidModel(
                f"model {entry.name!r} needs {token_bytes} bytes for the keys and values of one token, and the "
                f"worker has {budget} in all for them: raise TANDEM_KV_BYTES",
                param="model",
            )
        if (slots, tokens) != (wanted, context):
            log.warning(
                "%s has %d slots of %d tokens instead of %d of %d: keys and values take %d bytes a token, and "
                "TANDEM_KV_BYTES allows %d in all",
                *(entry.name, slots, tokens, wanted, context, token_bytes, budget),
            )
        return slots, tokens

    def _apart(self, model: Any, tokenizer: Any, adapter: ApartAdapter, task: Task) -> EncoderBatcher:
        """A started batcher that does `task` over a tree of the model's weights with the adapter in it.

        Raises AdapterMismatch, and what the task's constructor raises.
        """
        pipeline = pipeline_over(build_apart(adapter, model), tokenizer, task, device=self._device)
        log.info("%s is served apart: %s", adapter.id, adapter.reason)
        return self._batcher(task, pipeline.model, tokenizer, pipeline)

    def _watch(self, entry: CatalogueEntry, *works: EngineLoop | Batchers | ApartAdapters) -> Callable[[], None]:
        sources = [ProgressSource(entry.name, work.is_busy, work.progress) for work in works]
        for source in sources:
            self._stalls.add(source)

        def unwatch() -> None:
            for source in sources:
                self._stalls.remove(source)

        return unwatch


def _constraints(engine: Engine, tokenizer: PreTrainedTokenizerBase) -> ConstraintCompiler:
    return ConstraintCompiler(tokenizer, engine.vocabulary, engine.end_tokens)


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


def _weight_files(entry: CatalogueEntry) -> list[int]:
    """Sizes in bytes of the safetensors files, on disk or on the hub."""
    if entry.folder is not None:
        return [path.stat().st_size for path in Path(entry.folder).glob("*.safetensors")]
    assert entry.hub is not None
    info = HfApi().model_info(entry.hub, revision=entry.revision, files_metadata=True)
    return [file.size or 0 for file in info.siblings or () if file.rfilename.endswith(".safetensors")]
