"""What a training has come to."""

from dataclasses import dataclass
from typing import Any

from worker.training.data import DataReport
from worker.training.files import TrainingFiles
from worker.training.resumption import Event
from worker.training.trainer import TurnTrainer


@dataclass(frozen=True)
class TrainingOutcome:
    """What a training has come to. Losses are means over answer tokens (or labels), in nats."""

    steps: int
    total_steps: int
    """More than `steps` where the training was stopped early."""
    kept_step: int
    """The optimizer step whose adapter is published."""
    epochs: float
    train_loss: float
    """Mean of the last optimizer steps (up to ten)."""
    first_train_loss: float
    """Of the first optimizer step, before anything was learned."""
    validation_loss_before: float | None
    validation_loss_after: float | None
    validation_figures_before: dict[str, float] | None
    """What the task's metric found in the first evaluation and in the last, such as `accuracy` or `f1`, from 0 to 1;
    None without validation rows, and for tasks whose loss says all."""
    validation_figures_after: dict[str, float] | None
    tokens: int
    """Tokens trained on, prompts included and padding not, over all epochs."""
    seconds: float
    """Wall time, serving's turns and the attempts before a resumption included."""
    history: tuple[dict[str, Any], ...]
    """The events of type `metrics` and `evaluation`, in order."""
    training_data: DataReport
    validation_data: DataReport | None
    leaked_rows: int
    """Validation rows that are training rows too: what they say of the adapter is too good to be true."""


def outcome_of(trainer: TurnTrainer, files: TrainingFiles) -> TrainingOutcome:
    """What a trainer that has run to the end has come to."""
    losses = trainer.validation_losses
    figures = [_figures(event) for event in trainer.history if event["type"] == "evaluation"]
    assert trainer.first_loss is not None, "a training has at least one step"
    return TrainingOutcome(
        steps=trainer.state.global_step,
        total_steps=trainer.state.max_steps,
        kept_step=trainer.kept_step,
        epochs=float(trainer.state.epoch or 0.0),
        train_loss=sum(trainer.last_losses) / len(trainer.last_losses),
        first_train_loss=trainer.first_loss,
        validation_loss_before=losses[0] if losses else None,
        validation_loss_after=losses[-1] if losses else None,
        validation_figures_before=figures[0] if figures else None,
        validation_figures_after=figures[-1] if figures else None,
        tokens=trainer.trained_tokens,
        seconds=trainer.seconds,
        history=tuple(trainer.history),
        training_data=files.training.report,
        validation_data=files.validation.report if files.validation else None,
        leaked_rows=files.leaked_rows,
    )


def _figures(evaluation: Event) -> dict[str, float] | None:
    """What an event says beside the loss, if it says more."""
    figures = {name: value for name, value in evaluation.items() if name not in ("type", "step", "loss")}
    return figures or None
