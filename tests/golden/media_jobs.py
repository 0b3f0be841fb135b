"""Jobs on images, sounds and videos as a worker runs them, from what a user sends to the rows of the result."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tandem.specs import job_spec_adapter
from tests.tiny_models import samples
from worker.encoders import EncoderBatcher
from worker.media.limits import MediaLimits
from worker.media.reader import MediaReader
from worker.pipeline_loading import load_pipeline
from worker.tasks import PIPELINE_TASKS
from worker.tasks.result_files import ResultFiles

MANY = 100_000_000
"""A budget that no test here fills: what may share a forward does."""
TOLERANCE = 3e-5
"""Between one batch and one input alone, float32: rounding in another order of summation, which the tiny DETR's
sharpened head enlarges to 1.2e-5 (in float64 they are 1e-14 apart)."""


@dataclass(frozen=True)
class Asked:
    """One job: its inputs as a spec has them (see `sent`), and its parameters."""

    inputs: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    on_row_error: str = "fail"


class MediaJobs:
    """One task on one tiny model, with the batcher around it."""

    def __init__(self, task: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
        self.name = task
        self.pipeline = load_pipeline(task, folder, revision=None, dtype=dtype, device=torch.device("cpu"))
        self.task = PIPELINE_TASKS[task](self.pipeline)
        self.forwards = 0
        """Of the last `run`."""
        self._blobs: dict[str, bytes] = {}

    def run(self, *jobs: Asked) -> list[Any]:
        """The rows of each job, or its error; all are submitted before the first forward."""
        batcher = EncoderBatcher(self.task, budget=MANY, max_wait_seconds=0.0)
        futures = []
        for job in jobs:
            spec = job_spec_adapter.validate_python(
                {
                    "kind": "inference",
                    "task": self.name,
                    "inputs": job.inputs,
                    "parameters": job.parameters,
                    "on_row_error": job.on_row_error,
                }
            )
            try:
                futures.append(self._submit(batcher, spec))
            except Exception as error:
                futures.append(error)
        batcher.start()
        try:
            answers = [job if isinstance(job, Exception) else _outcome(job) for job in futures]
        finally:
            batcher.stop()
        self.forwards = batcher.counts.batches
        files = ResultFiles(self._put)
        jobs_rows = [answer if isinstance(answer, Exception) else self._rows(answer, files) for answer in answers]
        plain = [
            row for rows in jobs_rows if isinstance(rows, list) for row in rows if not isinstance(row, Exception)
        ]
        assert json.loads(json.dumps(plain)) == plain, "rows are JSON as they are"
        return jobs_rows

    def opened(self, value: Any) -> Any:
        """A row with its files in place of their names: pictures, arrays of NumPy's format, sounds as bytes."""
        if isinstance(value, dict):
            if "artifact" in value:
                content = self._blobs[value["artifact"].removeprefix("artifact-")]
                assert value["bytes"] == len(content)
                reads: dict[str, Any] = {
                    "image/png": Image.open,
                    "application/x-npy": np.load,
                    "audio/wav": io.BytesIO.getvalue,
                }
                return reads[value["media_type"]](io.BytesIO(content))
            return {name: self.opened(item) for name, item in value.items()}
        return [self.opened(item) for item in value] if isinstance(value, list) else value

    def _submit(self, batcher: EncoderBatcher, spec: Any) -> Any:
        media = MediaReader(self._blobs.__getitem__, MediaLimits())
        keep = spec.on_row_error == "keep"
        inputs: list[Any] = []
        values = spec.inputs if isinstance(spec.inputs, tuple) else (spec.inputs,)
        for place, value in enumerate(values):
            try:
                inputs.append(self.task.read(value, media, f"inputs[{place}]"))
            except Exception as error:
                if not keep:
                    raise
                inputs.append(error)
        return batcher.submit(inputs, spec.parameters, keep_errors=keep)

    def _rows(self, results: Sequence[Any], files: ResultFiles) -> list[Any]:
        return [row if isinstance(row, Exception) else self.task.present(row, files) for row in results]

    def _put(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self._blobs[digest] = content
        return digest


def same(found: Any, expected: Any, path: str = "row") -> None:
    """Asserts that an opened row is what the library returned: floats within the tolerance, all else exactly.

    Arrays are compared on the scale of their largest value, and images with shades of grey to one shade of 255: a
    float next to a rounding's edge may fall on either side.
    """
    if isinstance(expected, dict):
        assert list(found) == list(expected), path
        for name in expected:
            same(found[name], expected[name], f"{path}.{name}")
    elif isinstance(expected, list):
        assert isinstance(found, list), path
        assert len(found) == len(expected), path
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{path}[{place}]")
    elif isinstance(expected, Image.Image):
        shades = np.asarray(expected, dtype=int)
        _same_array(np.asarray(found, dtype=int), shades, 0 if set(np.unique(shades)) <= {0, 255} else 1, path)
    elif isinstance(expected, torch.Tensor):
        _same_array(found, expected.numpy(), TOLERANCE * float(expected.abs().max()), path)
    elif isinstance(expected, float):
        assert abs(found - expected) <= TOLERANCE * max(1.0, abs(expected)), path
    else:
        assert found == expected, path
        assert type(found) is type(expected), path


def _same_array(found: Any, expected: Any, margin: float, path: str) -> None:
    assert found.shape == expected.shape, path
    assert found.dtype == expected.dtype, path
    assert np.abs(found - expected).max() <= margin, path


def sent(value: Any) -> Any:
    """An image, a file's content, or lists of them as a user sends them: in base64."""
    if isinstance(value, list | tuple):
        return [sent(item) for item in value]
    content = samples.png(value) if isinstance(value, Image.Image) else value
    return base64.b64encode(content).decode()


def _outcome(future: Any) -> Any:
    """A future's result, or its error."""
    return future.exception() or future.result()
