"""transformers' Trainer, whose work on the device is cut into turns."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainingArguments

from tandem.errors import TrainingDiverged
from worker.training import accelerate_state
from worker.training.adalora import OrthogonalityLoss
from worker.training.boundaries import Boundaries
from worker.training.checkpoint import Checkpoint
from worker.training.data import Example
from worker.training.figures import FigureSums
from worker.training.keeper import CheckpointKeeper
from worker.training.loss import IGNORED_LABEL
from worker.training.memory import memory_bytes
from worker.training.objectives.objective import BatchLoss, Loss, Metric
from worker.training.randomness import SeededTurns
from worker.training.resumption import Event, ResumableTrainer
from worker.training.selection import Selection
from worker.training.twin import GiveWayAtEveryCall

IDLE_SECONDS = 10.0
"""Nothing has been served for so long: whole micro-batches are run again. Long beside the pauses within a load, since
finding the right part anew takes some hundred tokens for each halving."""
SHORTENED = (
    "so many rows at once delay the texts that are served meanwhile beyond TANDEM_SERVING_SLOWDOWN: as long as they "
    "do, micro-batches are run in parts and their gradients are accumulated, so each step learns from the same rows "
    "as before; `rows_at_once` of the metrics says how many"
)
RATIONED = (
    "the training is slow because even its shortest pieces of work delay the texts that are served meanwhile beyond "
    "TANDEM_SERVING_SLOWDOWN, and its micro-batch cannot be run in smaller parts without changing what is learned "
    "(it is one row, draws random numbers for dropout, or compares its rows with each other): lower max_tokens or "
    "batch_size, or train without dropout"
)


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
        selection: Selection,
        keeps_best: bool,
        adds_up: bool,
        started: float,
    ) -> None:
        """`new_metric` gives each evaluation figures of its own. `adds_up`: see `Objective`."""
        super().__init__(
            cast("nn.Module", model),
            args,
            turns=turns,
            check=check,
            on_event=on_event,
            keeper=keeper,
            selection=selection,
            keeps_best=keeps_best,
            started=started,
            data_collator=cast("Any", collate),  # transformers' type names dicts, ours takes examples
            train_dataset=Examples(training),
            eval_dataset=Examples(validation) if validation else None,
        )
        self.remove_callback(PrinterCallback)  # standard output belongs to the worker
        self.add_callback(Boundaries(self))
        # Lets Trainer count the batch's labels even for a model whose own loss would not take their number.
        self.model_accepts_loss_kwargs = True
        self._loss = loss
        self._new_metric = new_metric
        self._turn = ExitStack()
        self._step_loss = 0.0
        self._micro_figures = FigureSums()
        """Of the micro step that is under way."""
        self._steps_before, self._steps_since = 0, perf_counter()
        """Optimizer steps that this process has not made, and when it began to make its own."""
        self._adds_up = adds_up
        self._states_before: tuple[Tensor, ...] | None = None
        """Training's random states before the last micro step."""
        self._warned: set[str] = set()
        self._last_report = (perf_counter(), 0, 0.0)
        """When the last metrics were reported, tokens until then, and seconds that training had had the device."""

    def run(self, checkpoint: Checkpoint | None = None) -> None:
        """Train to the end, from `checkpoint` on if there is one. Whatever is raised, no turn is held afterwards."""
        with self._turn:
            super().run(checkpoint)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        accelerate_state.separate(self.accelerator)

    def get_train_dataloader(self) -> Any:
        return self._apart(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return self._apart(super().get_eval_dataloader(eval_dataset))

    def _apart(self, loader: Any) -> Any:
        """A data loader that shares nothing with other trainings."""
        accelerate_state.attach(self.accelerator, loader)
        # Each iteration draws a seed for worker processes, of which there are none, and between turns the process's
        # generator is somebody else's. The order of the rows comes from a generator of the sampler's own.
        loader.base_dataloader.generator = torch.Generator()
        return loader

    def begin_training(self) -> None:
        super().begin_training()
        accelerate_state.attach(self.accelerator, self.optimizer, self.lr_scheduler)
        self._last_report = (perf_counter(), self.trained_tokens, self._turns.share.held_seconds)
        self._steps_before, self._steps_since = self.state.global_step, perf_counter()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self.check()
        self._fit_to_serving(inputs)
        self._turn.enter_context(self._turns.training())
        gradients = [None if one.grad is None else one.grad.clone() for one in self._trained_parameters()]
        losses: list[Tensor] = []

        def work(part: dict[str, Tensor]) -> None:
            if isinstance(self._loss, OrthogonalityLoss):
                self._loss.parts = self._parts.count(inputs)
            losses.append(super(TurnTrainer, self).training_step(model, part, num_items_in_batch))

        def undo() -> None:
            losses.clear()
            self._micro_figures.clear()
            for parameter, gradient in zip(self._trained_parameters(), gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()

        self._turns.run(lambda: self._parts.run(inputs, work, undo))
        self._figures.take(self._micro_figures)
        loss = torch.stack(losses).sum()
        self._step_loss += self._finite(float(loss), "training loss")
        self.trained_tokens += int(inputs["attention_mask"].sum())
        return loss

    def _fit_to_serving(self, batch: dict[str, Tensor]) -> None:
        """Run fewer rows at a time while their pieces are too long for those who are served.

        Only where that changes no more than how sums round: an adapter must not depend on what was served meanwhile.
        """
        before, self._states_before = self._states_before, self._turns.random_states()
        if before is None:  # the first micro step has to tell whether it draws random numbers
            return
        draws = not all(map(torch.equal, before, self._states_before))
        if self._parts.are_shortened and self._turns.idle_seconds >= IDLE_SECONDS:
            self._parts.lengthen()
            self._turns.pieces_changed()
        elif self._turns.pieces_are_too_long:
            if self._adds_up and not draws and self._parts.shorten(batch):
                self._turns.pieces_changed()
                self._warn_once(SHORTENED)
            else:
                self._warn_once(RATIONED)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self._on_event({"type": "warning", "step": self.state.global_step, "message": message})

    def _trained_parameters(self) -> list[nn.Parameter]:
        return [one for one in cast("nn.Module", self.model).parameters() if one.requires_grad]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Trainer's place between the gradient and the optimizer: the weights are still those of the step before.
        norm = cast("Any", super())._get_grad_norm(model, grad_norm)
        if norm is not None:
            self._finite(float(norm), "gradient")
        return norm

    def compute_loss(
        self,
        model: nn.Module,  # noqa: ARG002 - the loss holds the same model, split at its head
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        if return_outputs or num_items_in_batch is None:
            raise ValueError("this loss is for training steps: it has no outputs and needs the number of labels")
        found = self._loss(inputs, num_items_in_batch)
        self._micro_figures.add(found.sums, _labels(inputs))
        return found.loss

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
        metric, figures = self._new_metric(), FigureSums()
        total, labels = 0.0, 0
        for batch in self.get_eval_dataloader(eval_dataset):
            self.check()
            with self._turns.training():
                found = self._turns.run(partial(self._evaluate_batch, batch))
                total += sum(float(one.loss) for one in found)
                labels += _labels(batch)
                for one in found:
                    figures.add(one.sums, 0)
                    if metric is not None and one.logits is not None:
                        metric.add(one.logits)
        figures.add({}, labels)
        loss = self._finite(total / labels, "validation loss")
        self.validation_losses.append(loss)
        means = figures.means() if metric is None else metric.figures()
        self._report({"type": "evaluation", "step": self.state.global_step, "loss": loss, **means})
        self.note_evaluation(self.state.global_step, loss)
        self._evaluation_due = False
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in {"loss": loss, **means}.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        # Trainer's evaluation does it in its own `log`, which is for training steps here.
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _evaluate_batch(self, batch: dict[str, Tensor]) -> list[BatchLoss]:
        found: list[BatchLoss] = []
        self._parts.run(batch, lambda part: found.append(self._loss(part, 1.0)), found.clear)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        self.state.log_history.clear()  # it grows with every step, and `history` has it already
        if "loss" not in logs:  # the summary of the whole run, which the outcome holds
            return
        now, (then, tokens_then, held_then) = perf_counter(), self._last_report
        held, seconds = self._turns.share.held_seconds, max(now - then, 1e-9)
        self._last_report = (now, self.trained_tokens, held)
        self._report(
            {
                "type": "metrics",
                "step": self.state.global_step,
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs["grad_norm"],
                **self._figures.means(),
                "tokens": self.trained_tokens,
                "tokens_per_second": (self.trained_tokens - tokens_then) / seconds,
                "device_share": (held - held_then) / seconds,
                "quantum_ms": 1000 * self._turns.quantum_seconds,
                "rows_at_once": self._parts.rows_at_once,
                "memory_bytes": memory_bytes(self.args.device),
                "eta_seconds": self._eta_seconds(),
            }
        )
        self._figures.clear()

    def _eta_seconds(self) -> float:
        """What is left of the training, by the mean pace of this process's steps, evaluations among them included."""
        made = self.state.global_step - self._steps_before
        left = self.state.max_steps - self.state.global_step
        return left * (perf_counter() - self._steps_since) / max(made, 1)

    def begin_optimizer_step(self) -> None:
        """From here to the end of the turn no layer gives way, and an adapter may have many tensors."""
        self._turn.enter_context(GiveWayAtEveryCall(self._turns))

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
                "eta_seconds": self._eta_seconds(),
            }
        )

    def _report(self, event: Event) -> None:
        self.history.append(event)
        self._on_event(event)

    def _finite(self, value: float, what: str) -> float:
        if not math.isfinite(value):
            step = self.state.global_step
            raise TrainingDiverged(
                f"training diverged: the {what} is {value} {'after' if what == 'validation loss' else 'in'} step "
                f"{step if what == 'validation loss' else step + 1}; lower the learning rate, which is "
                f"{self.args.learning_rate}. Checkpoints of the steps before are kept",
                param="hyperparameters.learning_rate",
            )
        return value


def _labels(batch: dict[str, Tensor]) -> int:
    return int((batch["labels"] != IGNORED_LABEL).sum())
