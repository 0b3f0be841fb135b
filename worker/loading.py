"""Loads a catalogue entry: safetensors only, no code of the model's own, an engine or a batcher around it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tandem.catalogue import CatalogueEntry
from tandem.errors import InvalidModel
from tandem.settings import WorkerSettings
from worker.device import choose_dtype
from worker.encoders import EncoderBatcher
from worker.engine.detokenizer import Tokenizer
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.support import unsupported_reason
from worker.stall import ProgressSource, StallWatch
from worker.tasks import MODEL_CLASSES
from worker.training.turns import Turns

log = logging.getLogger(__name__)

_one_at_a_time = threading.Lock()
"""`from_pretrained` patches torch for the whole process meanwhile. Two at once broke 2 of 5 processes (three models
in three threads): `Cannot copy out of meta tensor`, for good. transformers names no thread-safe way."""


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model in memory with what serves it: an engine for decoders, a batcher for encoders."""

    entry: CatalogueEntry
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: EngineLoop | None
    encoder: EncoderBatcher | None
    unwatch: Callable[[], None]
    """Ends the stall watch over it."""

    def close(self) -> None:
        if self.engine is not None:
            self.engine.stop()
        if self.encoder is not None:
            self.encoder.stop()
        # Last, so that a hang on the way here is seen.
        self.unwatch()


class Loader:
    def __init__(self, settings: WorkerSettings, device: torch.device, turns: Turns, stalls: StallWatch) -> None:
        self._settings = settings
        self._device = device
        self._turns = turns
        self._stalls = stalls

    def measure(self, entry: CatalogueEntry) -> int:
        """Bytes of an entry's weights on the device. Raises InvalidModel if it has no safetensors."""
        sizes = _weight_files(entry)
        if not sizes:
            raise InvalidModel(
                f"model {entry.name!r} has no *.safetensors in {entry.folder or entry.hub}; run `make install` "
                "for the default models, or convert it with save_pretrained",
                param="model",
            )
        return sum(sizes)

    def load(self, entry: CatalogueEntry, task: str) -> ResidentModel:
        """Raises InvalidModel, saying what the library said."""
        started = time.monotonic()
        source = str(entry.folder or entry.hub)
        options: dict[str, Any] = {
            "revision": entry.revision,
            "trust_remote_code": False,
            "local_files_only": entry.folder is not None,
        }
        dtype = choose_dtype(entry.dtype, self._device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            with _one_at_a_time:
                model = MODEL_CLASSES[task].from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
        except (OSError, ValueError, KeyError) as error:
            raise InvalidModel(
                f"model {entry.name!r} cannot be loaded from {source}: {error}", param="model"
            ) from error
        model = model.to(self._device).eval().requires_grad_(False)
        resident = self._serve(entry, task, model, tokenizer)
        log.info("%s resident for %s (%s) after %.1f s", entry.name, task, dtype, time.monotonic() - started)
        return resident

    def _serve(
        self, entry: CatalogueEntry, task: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> ResidentModel:
        settings = self._settings
        if task != "text-generation":
            batcher = EncoderBatcher(
                model,
                tokenizer,
                task,
                serving_turn=self._turns.serving,
                token_budget=settings.encoder_tokens,
                max_wait_seconds=settings.encoder_wait_seconds,
            )
            batcher.start()
            return ResidentModel(entry, model, tokenizer, None, batcher, self._watch(entry, batcher))
        if reason := unsupported_reason(model):
            raise InvalidModel(f"model {entry.name!r} cannot be served yet: {reason}", param="model")
        limits = [settings.slot_tokens, entry.max_tokens, getattr(model.config, "max_position_embeddings", None)]
        engine = Engine(
            model,
            # transformers' type of `decode` also covers batches; one list of ids gives one text.
            cast("Tokenizer", tokenizer),
            sequence_slots=settings.sequence_slots,
            slot_tokens=min(limit for limit in limits if limit is not None),
            step_tokens=settings.step_tokens,
            adapter_slots=settings.adapter_slots,
            adapter_rank=settings.adapter_rank,
        )
        loop = EngineLoop(engine, serving_turn=self._turns.serving)
        loop.start()
        return ResidentModel(entry, model, tokenizer, loop, None, self._watch(entry, loop))

    def _watch(self, entry: CatalogueEntry, work: EngineLoop | EncoderBatcher) -> Callable[[], None]:
        source = ProgressSource(entry.name, work.is_busy, work.progress)
        self._stalls.add(source)
        return lambda: self._stalls.remove(source)


def _weight_files(entry: CatalogueEntry) -> list[int]:
    """Sizes in bytes of the safetensors files, on disk or on the hub."""
    if entry.folder is not None:
        return [path.stat().st_size for path in Path(entry.folder).glob("*.safetensors")]
    assert entry.hub is not None
    info = HfApi().model_info(entry.hub, revision=entry.revision, files_metadata=True)
    return [file.size or 0 for file in info.siblings or () if file.rfilename.endswith(".safetensors")]
