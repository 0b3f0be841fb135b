"""From a spec's hyperparameters to the arguments of transformers' Trainer."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    is_mlflow_available,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)

from tandem.errors import ConfigurationError, InvalidRequest
from tandem.specs import Hyperparameters
from tandem.specs.finetune import Tracker
from worker.training import accelerate_state

NEVER = 2**31
"""Steps between evaluations when only the first and the last are asked for."""


TRACKERS: dict[Tracker, Callable[[], bool]] = {
    "tensorboard": is_tensorboard_available,
    "mlflow": is_mlflow_available,
    "wandb": is_wandb_available,
    "trackio": is_trackio_available,
}
"""Where transformers can report to → whether what it needs is installed."""


TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"
"""transformers' variable for where it writes tensorboard's files; by default into the folder of the training."""


def refuse_missing(report_to: Sequence[Tracker]) -> None:
    """Raises InvalidRequest (param `report_to`) for a tracker that is not installed here, or would write its files
    where they are deleted when the training ends."""
    for tracker in report_to:
        if not TRACKERS[tracker]():
            raise InvalidRequest(
                f"`report_to`: {tracker} is not installed on the worker; install its package there, or leave it out",
                param="report_to",
            )
    if "tensorboard" in report_to and TENSORBOARD_FOLDER not in os.environ:
        raise InvalidRequest(
            f"`report_to`: {TENSORBOARD_FOLDER} is not set on the worker; set it there to the folder that "
            "tensorboard shows, or leave it out",
            param="report_to",
        )


def optimizer_steps(rows: int, hyperparameters: Hyperparameters) -> int:
    """Optimizer steps of a training on so many rows, as Trainer counts them."""
    if hyperparameters.max_steps is not None:
        return hyperparameters.max_steps
    batches = math.ceil(rows / hyperparameters.batch_size)
    # A last, smaller group of micro steps is a step as well.
    of_an_epoch = math.ceil(batches / hyperparameters.gradient_accumulation_steps)
    return math.ceil(hyperparameters.epochs * of_an_epoch)


def training_arguments(
    hyperparameters: Hyperparameters,
    scratch: Path,
    device: torch.device,
    *,
    evaluates: bool,
    evaluates_first: bool,
    report_to: Sequence[Tracker] = (),
) -> TrainingArguments:
    """Trainer's arguments; it writes nothing into `scratch`, but asks for a folder.

    `evaluates`: there are validation rows. `evaluates_first`: they are evaluated before the first step of this run.
    `report_to`: transformers' integrations; they take their settings from the worker's environment.

    Raises InvalidRequest for one that is not installed, and ConfigurationError unless `device`, where the model is,
    is the only one that Trainer would take.
    """
    refuse_missing(report_to)
    scheduler: str = hyperparameters.lr_scheduler_type
    if scheduler == "constant" and hyperparameters.warmup_steps:
        scheduler = "constant_with_warmup"  # transformers' plain "constant" ignores the warm-up
    accelerate_state.set_up(device)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=hyperparameters.epochs,
        max_steps=hyperparameters.max_steps or -1,
        per_device_train_batch_size=hyperparameters.batch_size,
        per_device_eval_batch_size=hyperparameters.batch_size,
        gradient_accumulation_steps=hyperparameters.gradient_accumulation_steps,
        learning_rate=hyperparameters.learning_rate,
        lr_scheduler_type=scheduler,
        warmup_steps=hyperparameters.warmup_steps,
        weight_decay=hyperparameters.weight_decay,
        max_grad_norm=hyperparameters.max_grad_norm,
        seed=hyperparameters.seed,
        data_seed=hyperparameters.seed,  # without it the order of rows comes from whatever state torch is in
        logging_strategy="steps",
        logging_steps=hyperparameters.logging_steps,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen, not averaged away
        eval_strategy="steps" if evaluates else "no",
        eval_steps=hyperparameters.eval_steps or NEVER,
        eval_on_start=evaluates_first,
        save_strategy="no",  # its checkpoints are pickled; ours are kept by `CheckpointKeeper`
        report_to=list(report_to),
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,  # batches are a few KB of token ids
        remove_unused_columns=False,
        label_names=["labels"],
        accelerator_config={"use_configured_state": True},  # else it clears what other trainings are reading
    )
    if arguments.device != device or arguments.n_gpu > 1:
        raise ConfigurationError(
            f"training would run on {arguments.device} of {arguments.n_gpu} devices, away from the model on "
            f"{device}: give each worker process one device, with CUDA_VISIBLE_DEVICES"
        )
    return arguments
