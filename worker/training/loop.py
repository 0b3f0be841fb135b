"""Train an adapter on the twin of a resident model: from rows to a PEFT folder."""

import gc
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.specs import Hyperparameters, TrainingRow
from tandem.specs.finetune import FineTuneTask
from tandem.specs.methods import AnyMethod, PromptLearningMethod
from worker.training.adapter import attach_adapter, save_adapter
from worker.training.arguments import training_arguments
from worker.training.checkpoint import (
    Base,
    Checkpoint,
    CheckpointUnusable,
    Subject,
    data_digest,
    read_checkpoint,
)
from worker.training.data import EncodedData
from worker.training.heads import build_headed_twin, draw_head
from worker.training.keeper import SAVE_SECONDS, CheckpointKeeper
from worker.training.objectives import Objective, objective_for
from worker.training.outcome import TrainingOutcome, outcome_of
from worker.training.randomness import SeededTurns, python_and_numpy_states_kept
from worker.training.resumption import Event
from worker.training.trained_state import check_fits
from worker.training.trainer import TurnTrainer
from worker.training.turns import Turns
from worker.training.twin import build_twin, give_way_at_layers
from worker.training.virtual_tokens import inputs_of

__all__ = ["TrainingOutcome", "train"]

_only_training = threading.Lock()
"""accelerate keeps the state of gradient accumulation in one object a process: two trainings at once would skip each
other's optimizer steps."""


def train(
    resident: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    base_name: str,
    training_rows: Sequence[TrainingRow],
    validation_rows: Sequence[TrainingRow] | None,
    method: AnyMethod,
    hyperparameters: Hyperparameters,
    turns: Turns,
    on_event: Callable[[dict[str, Any]], None],
    check: Callable[[], None],
    folder: Path,
    task: FineTuneTask = "text-generation",
    base_revision: str | None = None,
    resume_from: Path | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> TrainingOutcome:
    """Train an adapter for `resident` and write it into `folder`, as PEFT reads it.

    For text-generation the resident is the language model. For every other `task` it is a body without a head; the
    head that the task needs is new, is trained and written with the adapter, and `folder` has a `config.json` with
    what its outputs mean.

    The resident is neither changed nor moved, and serves on between turns. The same rows, settings and seed give
    the same adapter, bit for bit where the device's arithmetic repeats itself, whatever is served meanwhile.

    `on_event` gets JSON-ready dicts of type `progress` (every step), `metrics` (every `logging_steps`) and
    `evaluation`. `check` is called before every micro step and evaluated batch; what it raises stops the training
    there and leaves unchanged. Then, as after every error, no turn is held, the twin's memory is free, and nothing
    is in `folder`.

    `on_checkpoint` gets a folder with a checkpoint's files, and the number of optimizer steps completed in it: every
    `hyperparameters.save_steps`, at the end of a step when the last one is `save_seconds` old, and when `check`
    raises Draining or Paused, before that leaves. The folder is gone when it returns. What it raises is reported as
    a `warning` event, except for AttemptStopped.

    `resume_from` is such a folder, of this or another process; it must last until the training has ended. The
    training goes on with an event `resumed`, and comes to the same adapter, losses and history as one that was never
    stopped, bit for bit on the same kind of device. A checkpoint that cannot be used (damaged, of another version,
    made on another base) is reported as a `warning` event, and the training starts anew: the job loses time, not
    its result.

    Raises InvalidTrainingData for rows that cannot be used, UnsupportedTask for a model that does not learn `task`,
    InvalidRequest for a method that `task` or the model does not take, for targets that the model lacks, for more
    virtual tokens than its context leaves room for, for a training that diverges and (param `resume_from`) for a
    checkpoint with other rows or settings, ConfigurationError for a resident that is not on the process's only
    device, and RuntimeError when another training runs in this process.
    """
    if not _only_training.acquire(blocking=False):
        raise RuntimeError("one training at a time in a process: run this one when the other has ended")
    try:
        virtual_tokens = method.num_virtual_tokens if isinstance(method, PromptLearningMethod) else 0
        max_tokens = hyperparameters.max_tokens
        objective = objective_for(task, resident, tokenizer, max_tokens, training_rows, virtual_tokens)
        data = _encode(objective, training_rows, validation_rows)
        subject = Subject(
            base=Base(name=base_name, revision=base_revision, dtype=str(resident.dtype)),
            task=task,
            data=data_digest(*data),
            method=method,
            hyperparameters=hyperparameters,
        )
        seeded = SeededTurns(turns, seed=hyperparameters.seed, device=resident.device)
        with tempfile.TemporaryDirectory(prefix="tandem-training-") as scratch:
            keeper = None
            if on_checkpoint is not None:
                save_steps = hyperparameters.save_steps
                keeper = CheckpointKeeper(
                    subject, Path(scratch), on_checkpoint, on_event, save_steps=save_steps, save_seconds=save_seconds
                )
            return _train(
                resident,
                subject,
                objective,
                data,
                seeded,
                on_event,
                check,
                keeper,
                resume_from,
                Path(scratch),
                folder,
            )
    except BaseException as error:
        # A traceback keeps its frames' variables, and with them the twin, for as long as someone holds the error.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()  # Trainer, optimizer and scheduler refer to each other in circles
        if resident.device.type == "cuda":
            torch.cuda.empty_cache()
        _only_training.release()


def _encode(
    objective: Objective, training_rows: Sequence[TrainingRow], validation_rows: Sequence[TrainingRow] | None
) -> tuple[EncodedData, EncodedData | None]:
    training = objective.encode(training_rows)
    if not validation_rows:
        return training, None
    return training, objective.encode(validation_rows, param="validation_file")


def _train(
    resident: PreTrainedModel,
    subject: Subject,
    objective: Objective,
    data: tuple[EncodedData, EncodedData | None],
    turns: SeededTurns,
    on_event: Callable[[Event], None],
    check: Callable[[], None],
    keeper: CheckpointKeeper | None,
    resume_from: Path | None,
    scratch: Path,
    folder: Path,
) -> TrainingOutcome:
    training, validation = data
    started = time.perf_counter()
    check()
    twin = build_twin(resident) if objective.head is None else build_headed_twin(resident, objective.head)
    with turns.training(), python_and_numpy_states_kept():
        if objective.head is not None:
            draw_head(twin)
        model = attach_adapter(twin, subject.method, subject.base.name, objective)
        turns.give_way()
        loss = objective.loss(twin, turns.give_way, inputs_of(model))
    checkpoint = None if resume_from is None else _usable_checkpoint(resume_from, subject, model, on_event)
    arguments = training_arguments(
        subject.hyperparameters,
        scratch,
        resident.device,
        evaluates=validation is not None,
        evaluates_first=validation is not None and (checkpoint is None or checkpoint.course.evaluation_due),
    )
    with turns.training(), python_and_numpy_states_kept():
        trainer = TurnTrainer(
            model,
            arguments,
            training=training.examples,
            validation=validation.examples if validation else (),
            collate=objective.collate,
            loss=loss,
            new_metric=lambda: objective.metric(validation) if validation else None,
            turns=turns,
            check=check,
            on_event=on_event,
            keeper=keeper,
            started=started,
        )
    give_way_at_layers(twin, turns)
    trainer.run(checkpoint)
    trainer.check()
    save_adapter(model, folder)
    return outcome_of(trainer, training, validation)


def _usable_checkpoint(
    folder: Path, subject: Subject, model: PeftModel, on_event: Callable[[Event], None]
) -> Checkpoint | None:
    try:
        checkpoint = read_checkpoint(folder, subject)
        check_fits(model, checkpoint.tensors)
    except CheckpointUnusable as error:
        on_event({"type": "warning", "message": f"the training starts anew, without its checkpoint: {error}"})
        return None
    return checkpoint
