"""Train an adapter on the twin of a resident model: from rows to a PEFT folder."""

import gc
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.errors import InvalidRequest
from tandem.specs import Hyperparameters, TrainingRow
from tandem.specs.finetune import FineTuneTask, ObjectiveSpec, SupervisedObjective, Tracker
from tandem.specs.methods import AnyMethod, PromptLearningMethod
from worker.training.adalora import OrthogonalityLoss, RankAllocation, adalora_of
from worker.training.adapter import attach_adapter, save_adapter
from worker.training.arguments import training_arguments
from worker.training.borders import keeps_texts_apart
from worker.training.checkpoint import (
    Base,
    Checkpoint,
    CheckpointUnusable,
    Subject,
    read_checkpoint,
)
from worker.training.encoding import data_digest
from worker.training.files import TrainingFiles, encode_files
from worker.training.heads import build_headed_twin, draw_head
from worker.training.keeper import SAVE_SECONDS, CheckpointKeeper
from worker.training.memory import needed_bytes
from worker.training.objectives import Objective, objective_for
from worker.training.outcome import TrainingOutcome, outcome_of
from worker.training.randomness import SeededTurns, python_and_numpy_states_kept
from worker.training.resumption import Event
from worker.training.room import TrainingRoom
from worker.training.selection import Selection
from worker.training.trained_state import check_fits
from worker.training.trainer import TurnTrainer
from worker.training.turns import Turns
from worker.training.twin import GiveWayAtEveryCall, build_twin, give_way_at_layers
from worker.training.virtual_tokens import inputs_of

__all__ = ["TrainingOutcome", "train"]

WAITS_FOR_ROOM: Event = {"type": "warning", "message": "waits for memory, which other trainings hold"}

_setting_up = threading.Lock()
"""While a training holds it, it changes what belongs to the whole process, and puts it back: the filters of warnings,
and the random states of Python and numpy. Two that did so crosswise would put back each other's. It is taken before
the turn, never within one."""


def train(
    resident: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    base_name: str,
    training_rows: Iterable[TrainingRow],
    validation_rows: Iterable[TrainingRow] | None,
    method: AnyMethod,
    hyperparameters: Hyperparameters,
    turns: Turns,
    on_event: Callable[[dict[str, Any]], None],
    check: Callable[[], None],
    folder: Path,
    task: FineTuneTask = "text-generation",
    learning: ObjectiveSpec = SupervisedObjective(),  # noqa: B008 - it never changes
    base_revision: str | None = None,
    resume_from: Path | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
    on_adapter: Callable[[Path, int, Sequence[dict[str, Any]]], None] | None = None,
    save_seconds: float = SAVE_SECONDS,
    report_to: Sequence[Tracker] = (),
    room: TrainingRoom = TrainingRoom(),  # noqa: B008 - without a budget nothing is held back
) -> TrainingOutcome:
    """Train an adapter for `resident` and write it into `folder`, as PEFT reads it.

    For text-generation the resident is the language model. For every other `task` it is a body without a head; the
    head that the task needs is new, is trained and written with the adapter, and `folder` has a `config.json` with
    what its outputs mean.

    The resident is neither changed nor moved, and serves on between turns or beside them. The same rows, settings
    and seed give the same adapter, whatever is served meanwhile: bit for bit where the device's arithmetic repeats
    itself, but for how sums round where parts of it were computed beside serving, with fewer threads.

    Rows are read one by one, once or twice, and encoded into a temporary file, so a data set may be larger than the
    memory. `learning` says what is made of them.

    `on_event` gets JSON-ready dicts of type `data` (the report on the files, before any time of the device),
    `progress` (every step), `metrics` (every `logging_steps`) and `evaluation`. `check` is called before every micro
    step and evaluated batch; what it raises stops the training there and leaves unchanged. Then, as after every
    error, no turn is held, the twin's memory is free, and nothing is in `folder`.

    `on_checkpoint` gets a folder with a checkpoint's files, and the number of optimizer steps completed in it: every
    `hyperparameters.save_steps`, at the end of a step when the last one is `save_seconds` old, and when `check`
    raises Draining or Paused, before that leaves. The folder is gone when it returns. What it raises is reported as
    a `warning` event, except for AttemptStopped. `on_adapter` gets the adapter of each checkpoint, as PEFT reads it,
    with its step and the metrics and evaluations of that step; the same holds for what it raises.

    `resume_from` is such a folder, of this or another process; it must last until the training has ended. The
    training goes on with an event `resumed`, and comes to the same adapter, losses and history as one that was never
    stopped, bit for bit on the same kind of device. A checkpoint that cannot be used (damaged, of another version,
    made on another base) is reported as a `warning` event, and the training starts anew: the job loses time, not
    its result.

    Raises InvalidTrainingData for rows that cannot be used, UnsupportedTask for a model that does not learn `task`,
    InvalidRequest for a method that `task` or the model does not take, for targets that the model lacks, for more
    virtual tokens than its context leaves room for, for packing on a model that cannot keep texts apart, for a
    tracker in `report_to` that is not installed and (param `resume_from`) for a checkpoint with other rows or
    settings, TrainingDiverged for a loss or gradient that is not finite, OutOfMemory when not even one row fits, and
    ConfigurationError for a resident that is not on the process's only device.

    Trainings may run side by side in threads of their own, on one resident or several, with the same `turns`: each
    has a twin and takes turns of its own, and gives what it would give alone. One that does not fit into what is
    left of `room` waits, and says so in a `warning`.
    """
    try:
        virtual_tokens = method.num_virtual_tokens if isinstance(method, PromptLearningMethod) else 0
        max_tokens = hyperparameters.max_tokens
        objective = objective_for(task, resident, tokenizer, max_tokens, training_rows, virtual_tokens, learning)
        with (
            closing(SeededTurns(turns, seed=hyperparameters.seed, device=resident.device)) as seeded,
            tempfile.TemporaryDirectory(prefix="tandem-training-") as name,
        ):
            scratch, encoded = Path(name, "scratch"), Path(name, "encoded")
            scratch.mkdir()
            encoded.mkdir()
            files = encode_files(objective, training_rows, validation_rows, hyperparameters, encoded, check)
            on_event(files.event(hyperparameters))
            subject = Subject(
                base=Base(name=base_name, revision=base_revision, dtype=str(resident.dtype)),
                task=task,
                data=data_digest(files.training, files.validation),
                method=method,
                objective=learning,
                hyperparameters=hyperparameters,
            )
            keeper = None
            if on_checkpoint is not None:
                keeper = CheckpointKeeper(
                    subject,
                    scratch,
                    on_checkpoint,
                    on_event,
                    hand_over_adapter=on_adapter,
                    save_steps=hyperparameters.save_steps,
                    save_seconds=save_seconds,
                )
            return _train(
                resident,
                subject,
                objective,
                files,
                seeded,
                room,
                on_event,
                check,
                keeper,
                resume_from,
                scratch,
                folder,
                report_to,
            )
    except BaseException as error:
        # A traceback keeps its frames' variables, and with them the twin, for as long as someone holds the error.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()  # Trainer, optimizer and scheduler refer to each other in circles
        if resident.device.type == "cuda":
            torch.cuda.empty_cache()


def _adapted_twin(
    resident: PreTrainedModel, subject: Subject, objective: Objective, files: TrainingFiles, turns: SeededTurns
) -> PeftModel:
    """A twin with the adapter that is to be trained."""
    twin = build_twin(resident) if objective.head is None else build_headed_twin(resident, objective.head)
    objective.drop_unused(twin)
    settings = subject.hyperparameters
    with _setting_up, turns.training(), GiveWayAtEveryCall(turns):
        if objective.head is not None:
            draw_head(twin)
        if settings.packing and not keeps_texts_apart(twin):
            raise InvalidRequest(
                f"{type(twin).__name__} lets the rows of a pack see each other: train it without packing",
                param="hyperparameters.packing",
            )
        total_steps = files.steps(settings)
        return attach_adapter(twin, subject.method, subject.base.name, objective, total_steps=total_steps)


def _train(
    resident: PreTrainedModel,
    subject: Subject,
    objective: Objective,
    files: TrainingFiles,
    turns: SeededTurns,
    room: TrainingRoom,
    on_event: Callable[[Event], None],
    check: Callable[[], None],
    keeper: CheckpointKeeper | None,
    resume_from: Path | None,
    scratch: Path,
    folder: Path,
    report_to: Sequence[Tracker],
) -> TrainingOutcome:
    check()
    model = _adapted_twin(resident, subject, objective, files, turns)
    with room.hold(needed_bytes(model, files, subject.hyperparameters), check, lambda: on_event(WAITS_FOR_ROOM)):
        checkpoint = None if resume_from is None else _usable_checkpoint(resume_from, subject, model, on_event)
        trainer = _trainer(
            model, subject, objective, files, turns, on_event, check, keeper, checkpoint, scratch, report_to
        )
        trainer.run(checkpoint)
        trainer.check()
        trainer.restore_best()
        save_adapter(model, folder)
        return outcome_of(trainer, files)


def _trainer(
    model: PeftModel,
    subject: Subject,
    objective: Objective,
    files: TrainingFiles,
    turns: SeededTurns,
    on_event: Callable[[Event], None],
    check: Callable[[], None],
    keeper: CheckpointKeeper | None,
    checkpoint: Checkpoint | None,
    scratch: Path,
    report_to: Sequence[Tracker],
) -> TurnTrainer:
    training, validation, settings = files.training, files.validation, subject.hyperparameters
    started = time.perf_counter()
    twin = cast("PreTrainedModel", model.get_base_model())
    give_way_at_layers(twin, turns)
    with turns.training():
        loss = objective.loss(twin, turns.give_way, inputs_of(model))
    adalora = adalora_of(model)
    if adalora is not None:
        micro_steps = settings.gradient_accumulation_steps
        loss = OrthogonalityLoss(loss, adalora, micro_steps=micro_steps)
    arguments = training_arguments(
        settings,
        scratch,
        twin.device,
        report_to=report_to,
        evaluates=validation is not None,
        evaluates_first=validation is not None and (checkpoint is None or checkpoint.course.evaluation_due),
    )
    with _setting_up, turns.training(), python_and_numpy_states_kept():
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
            selection=Selection(
                patience=settings.early_stopping_patience, threshold=settings.early_stopping_threshold
            ),
            keeps_best=settings.keep == "best",
            adds_up=objective.adds_up,
            started=started,
        )
    if adalora is not None:
        trainer.add_callback(RankAllocation(adalora))
    return trainer


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
