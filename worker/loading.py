"""Loads a catalogue entry: safetensors only, no code of the model's own, an engine or batchers around it."""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers import pipeline as library_pipeline

from tandem.catalogue import CatalogueEntry
from tandem.errors import InvalidModel
from tandem.settings import WorkerSettings
from tandem.specs import Task
from tandem.specs.finetune import TEXT_TO_TEXT
from worker.apart import ApartAdapter, ApartAdapters, build_apart
from worker.batchers import Batchers
from worker.device import choose_dtype, memory_budget
from worker.encoders import EncoderBatcher
from worker.encoders.adapted_body import AdaptedBody
from worker.encoders.adapter_task import AdapterTask
from worker.engine.engine import Engine
from worker.engine.kv.choice import stored_dtype
from worker.engine.kv.slots import fit_slots
from worker.engine.linears.products import speed_up_encoder
from worker.engine.loop import EngineLoop
from worker.engine.self_check import self_check
from worker.engine.support import SHAPE_FIELDS, kv_shape, unsupported_reason
from worker.engine.text.detokenizer import Tokenizer
from worker.engine.tokens.constraints import ConstraintCompiler
from worker.four_bit import keep_layout, load_options, weight_bytes
from worker.missing_head import check_head
from worker.pipeline_loading import load_pipeline, pipeline_over
from worker.resident_model import ADAPTERS, ResidentModel
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


class Loader:
    def __init__(self, settings: WorkerSettings, device: torch.device, turns: Turns, stalls: StallWatch) -> None:
        self._settings = settings
        self._device = device
        self._turns = turns
        self._stalls = stalls
        self.budget = memory_budget(settings, device)

    def measure(self, entry: CatalogueEntry, task: Task) -> int:
        """Bytes of an entry on the device, resident for `task`: its weights, at most as much for packed copies, and
        what its engine may take for keys and values. Adapters are counted when they come. Weights that are rounded
        to 4 bits come to less than half of their files, embeddings included.

        Raises InvalidModel if it has no safetensors.
        """
        sizes = _weight_files(entry)
        if not sizes:
            raise InvalidModel(
                f"model {entry.name!r} has no *.safetensors in {entry.folder or entry.hub}; run `make install` "
                "for the default models, or convert it with save_pretrained",
                param="model",
            )
        copied = 2 if self._packs(task) else 1
        weights = sum(sizes) * copied if entry.quantization is None else sum(sizes) // 2
        if task != "text-generation" or weights > self.budget.residents:
            return weights
        return weights + self._measure_kv(entry, weights)

    def _measure_kv(self, entry: CatalogueEntry, weights: int) -> int:
        """Bytes of the keys and values of an engine for the entry, in the largest dtype that they may have."""
        source, options = _source(entry)
        try:
            config = AutoConfig.from_pretrained(source, **options)
        except (OSError, ValueError, KeyError) as error:
            raise _unloadable(entry, "text-generation", error) from error
        if not all(hasattr(config, field) for field in SHAPE_FIELDS):
            return 0  # no engine holds it
        dtype = torch.float32 if self._device.type == "cpu" else choose_dtype(entry.dtype, self._device)
        token_bytes = kv_shape(config).token_bytes(dtype)
        slots, tokens = self._fit_slots(entry, config, token_bytes, weights)
        return slots * tokens * token_bytes

    def _packs(self, task: Task) -> bool:
        """Whether the linear layers get copies that the CPU multiplies faster."""
        is_ours = task == "text-generation" or task in ENCODER_TASKS
        return is_ours and self._device.type == "cpu" and self._settings.packed_linears == "auto"

    def load(self, entry: CatalogueEntry, task: Task) -> ResidentModel:
        """Raises InvalidModel, saying what the library said, or that the head for the task is missing."""
        started = time.monotonic()
        dtype = choose_dtype(entry.dtype, self._device)
        try:
            if task in PIPELINE_TASKS:
                pipeline = self._pipeline(entry, task, dtype)
                model, tokenizer = pipeline.model, pipeline.tokenizer
            else:
                pipeline = None
                model, tokenizer = self._model(entry, task, dtype)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise _unloadable(entry, task, error) from error
        check_head(entry.name, task, model)
        model.eval().requires_grad_(False)
        engine = None
        copy_bytes = 0
        if task == "text-generation":
            reason = unsupported_reason(model) or self_check(model)
            if reason is None:
                engine = self._engine(entry, model, tokenizer)
            else:
                log.warning("%s is served by the library's generate(), not by the engine: %s", entry.name, reason)
                pipeline = library_pipeline(task, model=model, tokenizer=tokenizer, device=self._device)
        elif self._packs(task):
            copy_bytes = speed_up_encoder(model)
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
            weight_bytes=weight_bytes(model) + copy_bytes,
            load_seconds=seconds,
            unwatch=self._watch(entry, *(work for work in (engine or batchers, apart) if work is not None)),
            apart=apart,
            constraints=None
            if engine is None
            else ConstraintCompiler(tokenizer, engine.engine.vocabulary, engine.engine.end_tokens),
        )

    def _model(self, entry: CatalogueEntry, task: str, dtype: torch.dtype) -> tuple[Any, Any]:
        source, options = _source(entry)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if entry.quantization is not None:
            options |= load_options(dtype, self._device)
        with one_loads:
            model = MODEL_CLASSES[task].from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
        if entry.quantization is None:
            model.to(self._device)
        keep_layout(model)
        return model, tokenizer

    def _pipeline(self, entry: CatalogueEntry, task: str, dtype: torch.dtype) -> Any:
        with one_loads:
            return load_pipeline(
                task,
                _source(entry)[0],
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
            # A pipeline's model may draw from the default generators, which training beside it would see.
            serving_turn=partial(self._turns.serving, beside=pipeline is None),
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
        dtype = stored_dtype(model, cpu_kernels=settings.cpu_kernels == "auto")
        weights = weight_bytes(model) * (2 if self._packs("text-generation") and entry.quantization is None else 1)
        slots, slot_tokens = self._fit_slots(entry, model.config, kv_shape(model.config).token_bytes(dtype), weights)
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
        loop = EngineLoop(engine, serving_turn=partial(self._turns.serving, beside=True))
        loop.start()
        return loop

    def _fit_slots(
        self, entry: CatalogueEntry, config: PreTrainedConfig, token_bytes: int, weights: int
    ) -> tuple[int, int]:
        """Slots, and tokens of each, that the memory for keys and values allows beside so many bytes of weights."""
        limits = (self._settings.slot_tokens, entry.max_tokens, getattr(config, "max_position_embeddings", None))
        context = min(limit for limit in limits if limit is not None)
        budget, wanted = self.budget.kv_beside(weights), self._settings.sequence_slots
        slots, tokens = fit_slots(wanted, context, token_bytes=token_bytes, budget_bytes=budget)
        if tokens < MIN_SLOT_TOKENS:
            raise InvalidModel(
                f"model {entry.name!r} needs {token_bytes} bytes for the keys and values of one token, and the "
                f"worker has {budget} in all beside its weights: raise TANDEM_KV_BYTES or TANDEM_MODEL_BYTES",
                param="model",
            )
        if (slots, tokens) != (wanted, context):
            log.warning(
                "%s has %d slots of %d tokens instead of %d of %d: keys and values take %d bytes a token, and "
                "TANDEM_KV_BYTES and TANDEM_MODEL_BYTES allow %d in all",
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


def _source(entry: CatalogueEntry) -> tuple[str, dict[str, Any]]:
    """Where an entry's files are, as `from_pretrained` takes it."""
    options = {
        "revision": entry.revision,
        "trust_remote_code": False,
        "local_files_only": entry.folder is not None,
    }
    return str(entry.folder or entry.hub), options


def _unloadable(entry: CatalogueEntry, task: str, error: Exception) -> InvalidModel:
    return InvalidModel(
        f"model {entry.name!r} cannot be loaded from {_source(entry)[0]} for {task}: {error}", param="model"
    )


def _weight_files(entry: CatalogueEntry) -> list[int]:
    """Sizes in bytes of the safetensors files, on disk or on the hub."""
    if entry.folder is not None:
        return [path.stat().st_size for path in Path(entry.folder).glob("*.safetensors")]
    assert entry.hub is not None
    info = HfApi().model_info(entry.hub, revision=entry.revision, files_metadata=True)
    return [file.size or 0 for file in info.siblings or () if file.rfilename.endswith(".safetensors")]
