"""transformers' Trainer, whose work on the device is cut into turns."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tandem.errors import InvalidRequest
from worker.training.checkpoint import Checkpoint
from worker.training.data import Example
from worker.training.keeper import CheckpointKeeper
from worker.training.loss import IGNORED_LABEL
from worker.training.objectives.objective import Loss, Metric
from worker.training.randomness import SeededTurns
from worker.training.resumption import Event, ResumableTrainer


class Examples(Dataset[Example]):
    """Encoded rows as the data set that a DataLoader takes."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


class TurnTrainer(ResumableTrainer):
    """The stock Trainer, with each micro step and each evaluated batch in a training turn of its own.

    A turn reaches from the forward pass to the end of the backward pass and, where one follows, of the optimizer's
    step. Data, events and `check` lie between turns, so that a slow reader of events delays no serving.

    The loss is the mean over the labels (answer tokens, or classes) of all micro steps of an optimizer step, however
    they are spread, and in evaluation over all those of the validation set.
    """

    loss_is_scaled_for_ga = True  # our loss is divided by the labels of the whole accumulated batch

    def __init__(
        self,
        model: PeftModel,
        args: TrainingArguments,
        *,
        training: Sequence[Example],
        validation: Sequence[Example],
        collate: Callable[[Sequence[Example]], dict[str, Tensor]],
        loss: Loss,
        new_metric: Callable[[], Metric | None],
        turns: SeededTurns,
        check: Callable[[], None],
        on_event: Callable[[Event], None],
        keeper: CheckpointKeeper | None,
        started: float,
    ) -> None:
        """`new_metric` gives each evaluation figures of its own."""
        super().__init__(
            cast("nn.Module", model),
            args,
            turns=turns,
            check=check,
            on_event=on_event,
            keeper=keeper,
            started=started,
            data_collator=cast("Any", collate),  # transformers' type names dicts, ours takes examples
            train_dataset=Examples(training),
            eval_dataset=Examples(validation) if validation else None,
        )
        self.remove_callback(PrinterCallback)  # standard output belongs to the worker
        self.add_callback(_Boundaries(self))
        # Lets Trainer count the batch's labels even for a model whose own loss would not take their number.
        self.model_accepts_loss_kwargs = True
        self._loss = loss
        self._new_metric = new_metric
        self._turn = ExitStack()
        self._step_loss = 0.0
        self._last_report = (perf_counter(), 0)

    def run(self, checkpoint: Checkpoint | None = None) -> None:
        """Train to the end, from `checkpoint` on if there is one. Whatever is raised, no turn is held afterwards."""
        with self._turn:
            super().run(checkpoint)

    def begin_training(self) -> None:
        super().begin_training()
        self._last_report = (perf_counter(), self.trained_tokens)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self.check()
        self._turn.enter_context(self._turns.training())
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss += self._finite(float(loss), "training loss")
        self.trained_tokens += int(inputs["attention_mask"].sum())
        return loss

    def compute_loss(
        self,
        model: nn.Module,  # noqa: ARG002 - the loss holds the same model, split at its head
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        if return_outputs or num_items_in_batch is None:
            raise ValueError("this loss is for training steps: it has no outputs and needs the number of labels")
        loss, _ = self._loss(inputs, num_items_in_batch)
        return loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 - Trainer's signature
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The mean loss of the validation set's labels, under `eval_loss`; it is reported as an event, with what the
        metric finds."""
        self._evaluation_due = True
        self.at_step_end()
        cast("nn.Module", self.model).eval()
        metric = self._new_metric()
        total, labels = 0.0, 0
        for batch in self.get_eval_dataloader(eval_dataset):
            self.check()
            with self._turns.training(), torch.no_grad():
                loss_sum, logits = self._loss(batch, 1.0)
                total += float(loss_sum)
                labels += int((batch["labels"] != IGNORED_LABEL).sum())
                if metric is not None and logits is not None:
                    metric.add(logits)
        loss = self._finite(total / labels, "validation loss")
        self.validation_losses.append(loss)
        figures = {} if metric is None else metric.figures()
        self._report({"type": "evaluation", "step": self.state.global_step, "loss": loss, **figures})
        self._evaluation_due = False
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        self.state.log_history.clear()  # it grows with every step, and `history` has it already
        if "loss" not in logs:  # the summary of the whole run, which the outcome holds
            return
        now, (then, tokens_then) = perf_counter(), self._last_report
        self._last_report = (now, self.trained_tokens)
        self._report(
            {
                "type": "metrics",
                "step": self.state.global_step,
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "grad_norm": self._finite(logs["grad_norm"], "gradient"),
                "tokens": self.trained_tokens,
                "tokens_per_second": (self.trained_tokens - tokens_then) / max(now - then, 1e-9),
            }
        )

    def end_turn(self) -> None:
        self._turn.close()

    def end_step(self) -> None:
        """After an optimizer step: end its turn, take its loss, report its progress."""
        self.end_turn()
        if self.first_loss is None:
            self.first_loss = self._step_loss
        self.last_losses.append(self._step_loss)
        self._step_loss = 0.0
        self._on_event(
            {
                "type": "progress",
                "step": self.state.global_step,
                "total_steps": self.state.max_steps,
                "epoch": self.state.epoch,
            }
        )

    def _report(self, event: Event) -> None:
        self.history.append(event)
        self._on_event(event)

    def _finite(self, value: float, what: str) -> float:
        if not math.isfinite(value):
            raise InvalidRequest(
                f"training diverged: the {what} is {value} at step {self.state.global_step}; "
                f"lower the learning rate, which is {self.args.learning_rate}",
                param="hyperparameters.learning_rate",
            )
        return value


class _Boundaries(TrainerCallback):
    """Tells the trainer where its steps begin and end: Trainer has no method to override there."""

    def __init__(self, trainer: TurnTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.begin_training()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.at_step_end()  # of the step before, with all that was logged and evaluated after it

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._trainer.end_turn()

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - a callback's signature
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        self._trainer.end_step()
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last steps' metrics, also when logging_steps does not divide them
