"""The decoder that is measured: as the library loads it, as a worker's loader prepares it, and what it is asked."""

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from bench.rounds import Work
from tandem.catalogue import Catalogue, CatalogueEntry
from tandem.settings import WorkerSettings
from tandem.specs import GenerationParameters, Task
from worker.device import choose_dtype
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence
from worker.loading import Loader
from worker.resident_model import ResidentModel
from worker.stall import StallWatch
from worker.training.turns import Turns

MODEL = "smollm2-135m-instruct"
CPU = torch.device("cpu")
DTYPE = choose_dtype("auto", CPU)
STALL_SECONDS = 60.0
"""Never used: the watch is not started."""
WORDS = (
    "river",
    "stone",
    "paper",
    "window",
    "garden",
    "silver",
    "market",
    "engine",
    "letter",
    "summer",
    "bridge",
    "cotton",
)
"""Each is one token of the model, with the space before it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and the number of tokens that every side must generate for it, whatever they are."""

    prompt: str
    new_tokens: int

    @property
    def parameters(self) -> dict[str, Any]:
        """As a job has them: greedy, and no end token ends the text."""
        return {"max_new_tokens": self.new_tokens, "ignore_eos": True}


def text(chance: random.Random, words: int) -> str:
    """Words drawn at random: two such texts have no beginning in common that is worth keeping."""
    return " ".join(chance.choices(WORDS, k=words))


def load_plain() -> tuple[PreTrainedModel, Any]:
    """The model as the library's own ways of generating take it, with no end token, and its tokenizer."""
    folder = WorkerSettings.read().models_dir / MODEL
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).eval()
    model.generation_config.eos_token_id = None
    return model, AutoTokenizer.from_pretrained(folder)


def load_resident(**changes: Any) -> ResidentModel:
    """The model as a worker serves it, prepared by the worker's own loader, but with its engine's thread ended.

    `changes` are settings of the worker (`WorkerSettings`) by name, over those of this process.
    """
    settings = WorkerSettings.read().model_copy(update=changes)
    resident = load_without_thread(settings, Catalogue.load(settings).get(MODEL), "text-generation")
    assert resident.engine is not None, "the engine holds Llama models"
    return resident


def load_without_thread(settings: WorkerSettings, entry: CatalogueEntry, task: Task) -> ResidentModel:
    """An entry as a worker holds it for `task`. If it has an engine, whoever measures makes its steps: without a
    thread's wake-ups."""
    resident = Loader(settings, CPU, Turns(), StallWatch(STALL_SECONDS, on_stall=_impossible)).load(entry, task)
    if resident.engine is not None:
        resident.engine.stop()
    return resident


def engine_of(resident: ResidentModel) -> Engine:
    assert resident.engine is not None
    return resident.engine.engine


def token_ids(tokenizer: Any, prompt: str) -> list[int]:
    return cast("list[int]", tokenizer(prompt).input_ids)


def to_sequence(request: Request, tokenizer: Any, **options: Any) -> Sequence:
    """The engine's form of a request; `options` are those of `Sequence`."""
    parameters = GenerationParameters(**request.parameters)
    return Sequence(token_ids(tokenizer, request.prompt), parameters, **options)


def run_together(engine: Engine, sequences: Iterable[Sequence]) -> Work:
    """All at once through the bare engine: the time from the first submission to the last result."""
    started = time.perf_counter()
    submitted = list(sequences)
    for sequence in submitted:
        engine.submit(sequence)
    while engine.has_work():
        engine.step()
    seconds = time.perf_counter() - started
    results = [sequence.future.result(timeout=0) for sequence in submitted]
    for sequence, result in zip(submitted, results, strict=True):
        if result.completion_tokens != sequence.parameters.max_new_tokens:
            raise RuntimeError(f"{result.completion_tokens} tokens of {sequence.parameters.max_new_tokens}")
    return Work(sum(result.completion_tokens for result in results), seconds)


def pure_decode(engine: Engine, sequences: Iterable[Sequence], *, steps: int) -> Work:
    """Only steps in which every sequence gets one token. They are to have some tokens more than that, and as many
    slots as they are; what is left of them is cancelled."""
    running = list(sequences)
    for sequence in running:
        engine.submit(sequence)
    while not all(sequence.token_ids for sequence in running):
        engine.step()
    before = [len(sequence.token_ids) for sequence in running]
    started = time.perf_counter()
    for _ in range(steps):
        engine.step()
    seconds = time.perf_counter() - started
    tokens = [len(sequence.token_ids) - had for sequence, had in zip(running, before, strict=True)]
    if tokens != [steps] * len(running):
        raise RuntimeError(f"after {steps} steps the sequences have {tokens} tokens more")
    for sequence in running:
        sequence.cancel()
    while engine.has_work():
        engine.step()
    return Work(sum(tokens), seconds)


def _impossible(name: str) -> None:
    raise RuntimeError(f"{name} was watched, although the watch was never started")
