"""transformers' Trainer, stopped and resumed exactly, by checkpoints without a pickled byte."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from tandem.errors import Draining, Paused
from worker.training.checkpoint import Checkpoint, Course
from worker.training.figures import FigureSums
from worker.training.keeper import CheckpointKeeper
from worker.training.randomness import SeededTurns
from worker.training.row_parts import RowParts
from worker.training.selection import Selection
from worker.training.trained_state import (
    adapter_snapshot,
    best_snapshot,
    best_tensors,
    random_states,
    random_tensors,
    restore_adapter,
    restore_optimizer,
    trained_tensors,
)

SMOOTHED_STEPS = 10
"""Optimizer steps in the final training loss: enough to even out single batches, few enough to show the end."""

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _StepEnd:
    """What the micro steps after it change, besides gradients."""

    random_states: tuple[Tensor, ...]
    tokens: int
    unlogged_loss: float
    unlogged_figures: dict[str, Any]


class ResumableTrainer(Trainer):
    """A Trainer that keeps checkpoints, and goes on from one as if it had never stopped.

    When `check` raises Draining or Paused, a checkpoint of the last completed optimizer step is kept first. That
    needs neither a copy of the weights nor the rest of an accumulated step: until the optimizer steps, micro steps
    change nothing but gradients, random states and sums. The gradients are given up, the others are noted at each
    step's end; whoever resumes repeats the unfinished step as if for the first time. The same holds for an
    evaluation that was under way.

    Trainer's own part of the resumption stays in use: it finds its place in the data by trainer_state.json. What it
    would read from pickled files is replaced here.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        turns: SeededTurns,
        check: Callable[[], None],
        on_event: Callable[[Event], None],
        keeper: CheckpointKeeper | None,
        selection: Selection,
        keeps_best: bool,
        started: float,
        **trainer_options: Any,
    ) -> None:
        """`keeper` gets the checkpoints; None keeps none. `selection` says when to stop early; with `keeps_best` the
        model ends with the adapter of its best step. `started`: when the training began, on `perf_counter`."""
        super().__init__(model=model, args=args, **trainer_options)
        self._turns = turns
        self._stop_if_asked = check
        self._on_event = on_event
        self._keeper = keeper
        self.selection = selection
        self._keeps_best = keeps_best
        self._best: dict[str, Tensor] = {}
        self._started = started
        self._resumed: Checkpoint | None = None
        self._parts = RowParts(args.per_device_train_batch_size, self._say_halved)
        self._figures = FigureSums()
        """Of the steps since the last `metrics` event."""
        self._step_end = _StepEnd(turns.random_states(), 0, 0.0, self._figures.state())
        self._unpublished: int | None = None
        """The step of a checkpoint whose adapter is still to be published, once it is evaluated."""
        self._evaluation_due = False
        self.first_loss: float | None = None
        self.last_losses: deque[float] = deque(maxlen=SMOOTHED_STEPS)
        self.validation_losses: list[float] = []
        self.history: list[Event] = []
        """The metrics and evaluations, in the order in which they were reported."""
        self.trained_tokens = 0
        """Tokens of all micro steps so far, padding not counted."""

    @property
    def seconds(self) -> float:
        """Wall time so far, that of the attempts before included."""
        return perf_counter() - self._started

    def run(self, checkpoint: Checkpoint | None = None) -> None:
        """Train to the end, from `checkpoint` on if there is one."""
        self._resumed = checkpoint
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.folder))
        self._step_end = self._now()
        self._publish()

    @property
    def kept_step(self) -> int:
        """The optimizer step whose adapter the training comes to."""
        best = self.selection.best if self._keeps_best else None
        return self.state.global_step if best is None else best[0]

    def restore_best(self) -> None:
        """Put the adapter of the best step back, if that is the one to keep; nothing is trained afterwards."""
        if self._best:
            with self._turns.training():
                restore_adapter(cast("nn.Module", self.model), self._best)

    def note_evaluation(self, step: int, loss: float) -> None:
        """Keep the adapter if it is the best so far and the best is to be kept; stop if it has not been for long."""
        if self.selection.add(step, loss) and self._keeps_best:
            with self._turns.training():
                self._best = adapter_snapshot(cast("nn.Module", self.model))
        if self.selection.is_over:
            self.control.should_training_stop = True

    def check(self) -> None:
        """Called between turns. Raises what `check` raises; if the training is to go on later, it is kept first."""
        try:
            self._stop_if_asked()
        except (Draining, Paused):
            self._keep()
            raise

    def at_step_end(self) -> None:
        """Called when no micro step is left that belongs to no optimizer step: keeps a checkpoint if one is due."""
        self._step_end = self._now()
        if self._keeper is not None and self._keeper.is_due(self.state.global_step):
            self._keep()
        if not self._evaluation_due:
            self._publish()

    def _publish(self) -> None:
        """Hand over the adapter of the checkpoint that was kept last, with what is known of it by now."""
        step, self._unpublished = self._unpublished, None
        if self._keeper is None or not step or step != self.state.global_step:
            return
        events = [event for event in self.history if event["step"] == step]
        with self._turns.training():
            folder = self._keeper.write_adapter(cast("PeftModel", self.model), step)
        if folder is not None:
            self._keeper.hand_over_adapter(folder, step, events)

    def _say_halved(self, before: int, now: int) -> None:
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        self._on_event(
            {
                "type": "warning",
                "step": self.state.global_step,
                "message": f"out of memory in step {self.state.global_step + 1}: from here on {now} rows run at a "
                f"time instead of {before}, and their gradients are accumulated, so each step learns from the same "
                "rows as before",
            }
        )

    def _now(self) -> _StepEnd:
        return _StepEnd(self._turns.random_states(), self.trained_tokens, float(self._tr_loss), self._figures.state())

    def _keep(self) -> None:
        if self._keeper is None or self._keeper.has(self.state.global_step, self._evaluation_due):
            return
        optimizer = cast("torch.optim.Optimizer", self.optimizer)
        with self._turns.training():
            tensors = trained_tensors(cast("nn.Module", self.model), optimizer)
        course = Course(
            step=self.state.global_step,
            evaluation_due=self._evaluation_due,
            tokens=self._step_end.tokens,
            unlogged_loss=self._step_end.unlogged_loss,
            unlogged_figures=self._step_end.unlogged_figures,
            last_logged_step=self._globalstep_last_logged,
            first_loss=self.first_loss,
            last_losses=tuple(self.last_losses),
            validation_losses=tuple(self.validation_losses),
            history=tuple(self.history),
            learning_rates=tuple(group["lr"] for group in optimizer.param_groups),
            scheduler=cast("Any", self.lr_scheduler).state_dict(),
            rows_at_once=self._parts.rows_that_fit,
            seconds=self.seconds,
        )
        tensors |= random_tensors(self._step_end.random_states) | best_tensors(self._best)
        if self._keeper.keep(course, tensors, self.state):
            self._unpublished = course.step

    def begin_training(self) -> None:
        """Called when Trainer has reset its sums for a new training: put back those of the one that goes on."""
        checkpoint, self._resumed = self._resumed, None
        if checkpoint is None:
            return
        course = checkpoint.course
        self._turns.restore(random_states(checkpoint.tensors))
        self._tr_loss = torch.tensor(course.unlogged_loss, device=self.args.device)
        self._globalstep_last_logged = course.last_logged_step
        self._started -= course.seconds
        self.first_loss = course.first_loss
        self.last_losses.extend(course.last_losses)
        self.validation_losses.extend(course.validation_losses)
        self.history.extend(course.history)
        self.trained_tokens = course.tokens
        self._figures.restore(course.unlogged_figures)
        self._parts.rows_that_fit = min(course.rows_at_once, self._parts.rows_that_fit)
        self.selection.replay(course.history)
        self._best = best_snapshot(checkpoint.tensors)
        self._unpublished = course.step
        if self._keeper is not None:
            self._keeper.goes_on_from(course)
        checkpoint.tensors.clear()  # up to some hundred MB, which nobody needs any more
        self._on_event({"type": "resumed", "step": course.step})

    # Trainer's own places for reading a checkpoint, in the order in which it comes to them.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:  # noqa: ARG002
        assert self._resumed is not None
        with self._turns.training():
            restore_adapter(cast("nn.Module", self.model), self._resumed.tensors)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:  # noqa: ARG002 - the same folder
        if self._resumed is None:
            return
        course = self._resumed.course
        with self._turns.training():
            restore_optimizer(
                cast("torch.optim.Optimizer", self.optimizer),
                cast("nn.Module", self.model),
                self._resumed.tensors,
                course.learning_rates,
            )
        cast("Any", self.lr_scheduler).load_state_dict(dict(course.scheduler))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is no gradient scaler: Trainer is asked for no mixed precision."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Training's random states come and go with its turns: `begin_training` has put them back."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer looks for the last step only after a step; one that only had its evaluation left would go beyond.
        if self.state.global_step >= self.state.max_steps or self.selection.is_over:
            self.control.should_training_stop = True
            return
        Trainer._run_epoch(self, *args, **kwargs)
