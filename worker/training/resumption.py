"""transformers' Trainer, stopped and resumed exactly, by checkpoints without a pickled byte."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from tandem.errors import Draining, Paused
from worker.training.checkpoint import Checkpoint, Course
from worker.training.keeper import CheckpointKeeper
from worker.training.randomness import SeededTurns
from worker.training.trained_state import (
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
        started: float,
        **trainer_options: Any,
    ) -> None:
        """`keeper` gets the checkpoints; None keeps none. `started`: when the training began, on `perf_counter`."""
        super().__init__(model=model, args=args, **trainer_options)
        self._turns = turns
        self._stop_if_asked = check
        self._on_event = on_event
        self._keeper = keeper
        self._started = started
        self._resumed: Checkpoint | None = None
        self._step_end = _StepEnd(turns.random_states(), 0, 0.0)
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

    def _now(self) -> _StepEnd:
        return _StepEnd(self._turns.random_states(), self.trained_tokens, float(self._tr_loss))

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
            last_logged_step=self._globalstep_last_logged,
            first_loss=self.first_loss,
            last_losses=tuple(self.last_losses),
            validation_losses=tuple(self.validation_losses),
            history=tuple(self.history),
            learning_rates=tuple(group["lr"] for group in optimizer.param_groups),
            scheduler=cast("Any", self.lr_scheduler).state_dict(),
            seconds=self.seconds,
        )
        self._keeper.keep(course, {**tensors, **random_tensors(self._step_end.random_states)}, self.state)

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
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        Trainer._run_epoch(self, *args, **kwargs)
