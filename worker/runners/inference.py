"""Runs inference jobs: all tasks but text generation in batches across jobs."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.adapters import AdapterStore
from tandem.artifacts import ArtifactStore
from tandem.errors import TandemError
from tandem.job import Failure
from tandem.specs import AnyInferenceSpec, InferenceSpec, Task, TextGenerationSpec
from tandem.specs.finetune import EMBEDDING, RESIDENT_TASK, TEXT_TO_TEXT
from worker.adapter_cache import AdapterCache
from worker.apart import read_served, read_text_to_text
from worker.attempt import Attempt
from worker.encoders import EncoderBatcher
from worker.encoders.adapter_task import AdapterParameters, AdapterTask
from worker.encoders.encoder_adapter import EncoderAdapter, read_encoder_adapter
from worker.loading import one_loads
from worker.media.limits import MediaLimits
from worker.media.reader import MediaReader
from worker.residency import ResidentModels
from worker.resident_model import ADAPTERS, ResidentModel, resident_task
from worker.runners.text_generation import TextGenerationRunner
from worker.tasks import PipelineTask
from worker.tasks.batched_task import BatchedTask
from worker.tasks.result_files import ResultFiles
from worker.tasks.token_texts import as_texts

_spec: TypeAdapter[Any] = TypeAdapter(InferenceSpec)


MEDIA_AT_ONCE = 32
"""Images or sounds of one job in memory together, decoded and as tensors: an image of DETR's size takes 13 MB."""


class InferenceRunner:
    def __init__(
        self,
        residents: ResidentModels[ResidentModel],
        adapters: AdapterStore,
        artifacts: ArtifactStore,
        *,
        adapter_rank: int,
        media_limits: MediaLimits,
    ) -> None:
        self._residents = residents
        self._texts = TextGenerationRunner(AdapterCache(adapters, partial(read_served, rank_limit=adapter_rank)))
        self._encoder_adapters = AdapterCache(adapters, _read_encoder_adapter)
        self._text_to_text_adapters = AdapterCache(adapters, read_text_to_text)
        self._artifacts = artifacts
        self._media_limits = media_limits

    def __call__(self, attempt: Attempt) -> dict[str, Any]:
        spec = _spec.validate_python(attempt.job.spec)
        with self._residents.use((spec.model, _resident_task(spec))) as resident:
            if isinstance(spec, TextGenerationSpec):
                return self._texts.run(attempt, spec, resident, self._media())
            return self._run_batched(attempt, spec, resident)

    def _run_batched(self, attempt: Attempt, spec: AnyInferenceSpec, resident: ResidentModel) -> dict[str, Any]:
        values = as_texts(_values(spec), resident.tokenizer)
        with self._batched(spec, resident) as (batcher, task, parameters):
            run = partial(batcher.run, should_stop=attempt.check, keep_errors=spec.on_row_error == "keep")
            if isinstance(task, PipelineTask):
                rows = self._run_pipeline(attempt, spec, task, values, run, parameters)
            else:
                rows = run(values, parameters)
        result: dict[str, Any] = {"rows": [_row(row) for row in rows]}
        if resident.tokenizer is not None and all(isinstance(value, str) for value in values):
            result["prompt_tokens"] = count_tokens(resident.tokenizer, list(values))
        return result

    def _run_pipeline(
        self,
        attempt: Attempt,
        spec: AnyInferenceSpec,
        task: PipelineTask[Any],
        values: Many[Any],
        run: Callable[..., list[Any]],
        parameters: Any,
    ) -> list[Any]:
        path = f"/v1/jobs/{attempt.job.id}/artifacts"
        files = ResultFiles(lambda content: self._artifacts.put(content).digest, path=path)
        rows: list[Any] = []
        portion = len(values) if task.unit == "tokens" else MEDIA_AT_ONCE
        for first in range(0, len(values), portion):
            inputs = self._read(attempt, spec, task, values[first : first + portion], first)
            made = run(inputs, parameters, first=first)
            rows += [row if isinstance(row, Exception) else task.present(row, files) for row in made]
        return rows

    @contextmanager
    def _batched(
        self, spec: AnyInferenceSpec, resident: ResidentModel
    ) -> Iterator[tuple[EncoderBatcher, BatchedTask[Any, Any], Any]]:
        """Who runs the job while the block lasts, what the task is to it, and with which parameters."""
        # Once there are adapters, the base's embeddings share their forwards.
        joins_adapters = spec.task in EMBEDDING and ADAPTERS in resident.batchers
        if spec.adapter is None and not joins_adapters:
            batcher = resident.batchers.get(spec.task)
            yield batcher, batcher.task, spec.parameters
        elif spec.task in TEXT_TO_TEXT:
            assert resident.apart is not None, "an encoder-decoder has trees"
            assert spec.adapter is not None, "without one it has a batcher of its own"
            written = self._text_to_text_adapters.get(spec.adapter, resident.model)
            with resident.apart.use(written, spec.task) as batcher:
                yield batcher, batcher.task, spec.parameters
        else:
            adapter = None if spec.adapter is None else self._encoder_adapters.get(spec.adapter, resident.model)
            if adapter is not None:
                adapter.check_does(spec.task)
            batcher = resident.batchers.get(ADAPTERS)
            all_adapters = cast("AdapterTask", batcher.task)
            all_adapters.body.pinned_adapters = self._encoder_adapters.pinned(resident.entry.name)
            yield batcher, all_adapters.task_of(adapter), AdapterParameters(adapter, spec.parameters)

    def _read(
        self, attempt: Attempt, spec: AnyInferenceSpec, task: PipelineTask[Any], values: Many[Any], first: int
    ) -> list[Any]:
        """The pipeline's inputs; the error of one that cannot be read takes its place if errors are kept."""
        media = self._media()
        inputs: list[Any] = []
        for place, value in enumerate(values, start=first):
            attempt.check()
            name = f"inputs[{place}]" if isinstance(spec.inputs, tuple) else "inputs"
            try:
                inputs.append(task.read(value, media, name))
            except TandemError as error:
                if spec.on_row_error == "fail":
                    raise
                inputs.append(error)
        return inputs

    def _media(self) -> MediaReader:
        return MediaReader(self._artifacts.read, self._media_limits)


def _resident_task(spec: AnyInferenceSpec) -> Task:
    """The task under which the job's model is resident. An adapter's base is the one that it was trained on."""
    if spec.adapter is None or spec.task == "text-generation":
        return resident_task(spec.task)
    return RESIDENT_TASK["text2text-generation"] if spec.task in TEXT_TO_TEXT else "feature-extraction"


def _read_encoder_adapter(adapter: str, folder: Path, body: PreTrainedModel) -> EncoderAdapter:
    # Building a headed class may switch torch's default dtype for the whole process meanwhile, as loading does.
    with one_loads:
        return read_encoder_adapter(adapter, folder, body)


def _values(spec: AnyInferenceSpec) -> Many[Any]:
    """The inputs, one or many; a list of token ids is one."""
    if isinstance(spec.inputs, tuple) and not isinstance(spec.inputs[0], int):
        return spec.inputs
    return (spec.inputs,)


def _row(row: Any) -> Any:
    """One input's result, or its error where errors are kept."""
    return {"error": Failure.of(row).model_dump(mode="json")} if isinstance(row, Exception) else row


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> int:
    return sum(len(ids) for ids in tokenizer(texts).input_ids)
