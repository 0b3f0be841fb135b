"""Checkpoints: all that a training needs to go on elsewhere as if it had never stopped.

A checkpoint is a folder of three files, safetensors and JSON: nothing pickled is written, and nothing is loaded that
could run code. It stands at the end of an optimizer step:

    tensors.safetensors   `adapter/<parameter>` the trained weights, `optimizer/<parameter>/<name>` their optimizer
                          state, `random/<n>` training's random states (CPU, then CUDA), `best/…` the adapter of
                          the best evaluation, where that is the one to keep
    trainer_state.json    transformers' TrainerState: step and epoch, from which it finds its place in the data
    checkpoint.json       what is trained (`Subject`), how far it has come (`Course`), the other files' SHA-256

Python's and numpy's generators are no part of it: training draws nothing from them (see `randomness`).
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from tandem.errors import InvalidRequest
from tandem.specs import Hyperparameters
from tandem.specs.finetune import FineTuneTask, ObjectiveSpec, SupervisedObjective
from tandem.specs.methods import Method

TENSORS_FILE = "tensors.safetensors"
RECORD_FILE = "checkpoint.json"
CHECKPOINT_FILES = (TENSORS_FILE, TRAINER_STATE_NAME, RECORD_FILE)
"""Every file of a checkpoint's folder."""


class CheckpointUnusable(Exception):
    """A checkpoint that is damaged, of another version, or made on other weights: the training has to start anew."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Base(_Part):
    """The weights under the adapter."""

    name: str
    revision: str | None
    dtype: str


class Subject(_Part):
    """What is trained. A checkpoint continues this and nothing else."""

    base: Base
    task: FineTuneTask = "text-generation"
    data: str
    """SHA-256 of the encoded rows: see `encoding.data_digest`."""
    method: Method
    objective: ObjectiveSpec = SupervisedObjective()
    hyperparameters: Hyperparameters


class Course(_Part):
    """How far a training has come, beside its tensors. Losses are means over answer tokens (labels), in nats."""

    step: int
    """Optimizer steps completed."""
    evaluation_due: bool
    """Whether the evaluation after this step (or before the first) has not ended."""
    tokens: int
    unlogged_loss: float
    """Sum of the losses of the steps since the last `metrics` event."""
    unlogged_figures: dict[str, Any]
    """The other figures of those steps: see `FigureSums.state`."""
    last_logged_step: int
    first_loss: float | None
    last_losses: tuple[float, ...]
    validation_losses: tuple[float, ...]
    history: tuple[dict[str, Any], ...]
    learning_rates: tuple[float, ...]
    """Of the optimizer's groups, for the next step."""
    scheduler: dict[str, Any]
    rows_at_once: int
    """Rows of a micro step that are run together: fewer than a batch has where they did not fit the memory."""
    seconds: float
    """Wall time so far, over all attempts."""


class _Record(_Part):
    """The content of checkpoint.json."""

    format: Literal[2] = 2
    """Raised when the meaning of a file changes: a worker of another version starts anew then."""
    subject: Subject
    course: Course
    tensors_sha256: str
    trainer_state_sha256: str


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    course: Course
    tensors: dict[str, Tensor]


def write_checkpoint(
    folder: Path, subject: Subject, course: Course, tensors: Mapping[str, Tensor], trainer_state: TrainerState
) -> None:
    """Write a checkpoint into `folder`, which must not exist yet: it appears whole, or not at all.

    `tensors` lie on the CPU and share no memory. Raises OSError.
    """
    with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=folder.parent) as beside:
        unfinished = Path(beside) / folder.name
        unfinished.mkdir()
        save_file(dict(tensors), unfinished / TENSORS_FILE)
        trainer_state.save_to_json(str(unfinished / TRAINER_STATE_NAME))
        record = _Record(
            subject=subject,
            course=course,
            tensors_sha256=_sha256(unfinished / TENSORS_FILE),
            trainer_state_sha256=_sha256(unfinished / TRAINER_STATE_NAME),
        )
        # Python's json writes the shortest text that reads back as the same float.
        (unfinished / RECORD_FILE).write_text(json.dumps(record.model_dump(mode="json"), allow_nan=False))
        unfinished.rename(folder)


def read_checkpoint(folder: Path, subject: Subject) -> Checkpoint:
    """Read and verify a checkpoint of `subject`; its tensors lie on the CPU.

    Raises CheckpointUnusable, and InvalidRequest (param `resume_from`) when it belongs to a training with other
    rows, another method or other hyperparameters.
    """
    try:
        record = _Record.model_validate(json.loads((folder / RECORD_FILE).read_text()))
        _verify(folder / TENSORS_FILE, record.tensors_sha256)
        _verify(folder / TRAINER_STATE_NAME, record.trainer_state_sha256)
        tensors = load_file(folder / TENSORS_FILE)
        # Trainer reads it from the file again; here it shows whether this version of transformers can.
        TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointUnusable(f"it is damaged or of another version: {error}") from error
    _refuse_other(record.subject, subject)
    return Checkpoint(folder, record.course, tensors)


def history_in(folder: Path) -> list[dict[str, Any]]:
    """The metrics and evaluations before a checkpoint that was read."""
    history: list[dict[str, Any]] = json.loads((folder / RECORD_FILE).read_text())["course"]["history"]
    return history


def _refuse_other(found: Subject, wanted: Subject) -> None:
    for part, what in (
        ("task", "task"),
        ("data", "rows"),
        ("method", "method"),
        ("objective", "objective"),
        ("hyperparameters", "hyperparameters"),
    ):
        if getattr(found, part) != getattr(wanted, part):
            raise InvalidRequest(
                f"the checkpoint is of a training with other {what}: go on with those, or start anew without it",
                param="resume_from",
            )
    if found.base != wanted.base:
        raise CheckpointUnusable(f"it was made on {found.base}, and the model here is {wanted.base}")


def _verify(path: Path, sha256: str) -> None:
    if _sha256(path) != sha256:
        raise ValueError(f"{path.name} is not what was written")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
