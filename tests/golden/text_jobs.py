"""Runs inference jobs on texts as the worker does, from what a user sends to the rows of the result."""

from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tandem.errors import UnknownArtifact
from tandem.specs import job_spec_adapter
from worker.encoders import EncoderBatcher
from worker.media.limits import MediaLimits
from worker.media.reader import MediaReader
from worker.pipeline_loading import load_pipeline
from worker.tasks import ENCODER_TASKS, MODEL_CLASSES, PIPELINE_TASKS, PipelineTask
from worker.tasks.batched_task import BatchedTask
from worker.tasks.result_files import ResultFiles

TOLERANCE = 1e-5
"""Between one padded batch and one input alone, float32: rounding in another order of summation."""
BUDGET = 1_000_000
"""So much that only company decides which rows share a forward."""


def library(task: str, folder: Path) -> Any:
    """The library's pipeline, or for the tasks that it dropped, ours."""
    return load_pipeline(task, folder, revision=None, dtype=torch.float32, device=torch.device("cpu"))


def loaded(task: str, folder: Path) -> BatchedTask[Any, Any]:
    """The task on a model of its own."""
    if task in PIPELINE_TASKS:
        return PIPELINE_TASKS[task](library(task, folder))
    model = MODEL_CLASSES[task].from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return ENCODER_TASKS[task](model, AutoTokenizer.from_pretrained(folder))


class Jobs:
    """Jobs of one task on one model, submitted before the batcher starts, so that they meet in its first round."""

    def __init__(self, name: str, task: BatchedTask[Any, Any]) -> None:
        """`name` is what the user calls the task."""
        self._name = name
        self._task = task
        self._batcher = EncoderBatcher(task, budget=BUDGET, max_wait_seconds=0)
        self.futures: list[Future[list[Any]]] = []
        """One a job, as the task's results come, before they are presented."""

    def spec(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        return job_spec_adapter.validate_python(
            {"kind": "inference", "task": self._name, "inputs": inputs, "parameters": parameters}
        )

    def submit(self, inputs: Any, parameters: dict[str, Any], **options: Any) -> None:
        """One job; `options` are the batcher's. Raises what is wrong with it, as the runner would."""
        spec = self.spec(inputs, parameters)
        values = spec.inputs if isinstance(spec.inputs, tuple) else (spec.inputs,)
        if isinstance(self._task, PipelineTask):
            media = MediaReader(_no_artifacts, MediaLimits())
            values = [self._task.read(value, media, f"inputs[{place}]") for place, value in enumerate(values)]
        self.futures.append(self._batcher.submit(values, spec.parameters, **options))

    def run(self) -> list[list[Any]]:
        """The rows of each job."""
        self._batcher.start()
        try:
            # All of them, so that one job's error takes nothing from the others.
            wait(self.futures, timeout=60)
            results = [future.result(0) for future in self.futures]
        finally:
            self._batcher.stop()
        if isinstance(self._task, PipelineTask):
            files = ResultFiles(lambda _content: "")
            results = [
                [row if isinstance(row, Exception) else self._task.present(row, files) for row in rows]
                for rows in results
            ]
        return results

    @property
    def forwards(self) -> int:
        return self._batcher.counts.batches

    @property
    def rows(self) -> int:
        return self._batcher.counts.rows


def _no_artifacts(digest: str) -> bytes:
    raise UnknownArtifact(f"there is no artifact {digest}: these jobs bring their images along")


def run_alone(name: str, task: BatchedTask[Any, Any], inputs: Sequence[Any], parameters: dict[str, Any]) -> list[Any]:
    """The row of each input in a job and a forward of its own."""
    rows = []
    for value in inputs:
        jobs = Jobs(name, task)
        jobs.submit(value, parameters)
        ((row,),) = jobs.run()
        rows.append(row)
    return rows


def same(found: Any, expected: Any, path: str = "row") -> None:
    """Asserts equality: floats within the tolerance, all else exactly; tuples of the library are lists in a row."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), path
        assert list(found) == list(expected), path
        for name in expected:
            same(found[name], expected[name], f"{path}.{name}")
    elif isinstance(expected, list | tuple):
        assert isinstance(found, list), path
        assert len(found) == len(expected), path
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{path}[{place}]")
    elif isinstance(found, float):
        assert found == pytest.approx(float(expected), abs=TOLERANCE, rel=TOLERANCE), path
    else:
        assert found == expected, path
        assert type(found) is type(expected), path
