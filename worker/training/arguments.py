"""From a spec's hyperparameters to the arguments of transformers' Trainer."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from tandem.errors import ConfigurationError
from tandem.specs import Hyperparameters

NEVER = 2**31
"""Steps between evaluations when only the first and the last are asked for."""


def training_arguments(
    hyperparameters: Hyperparameters,
    scratch: Path,
    device: torch.device,
    *,
    evaluates: bool,
    evaluates_first: bool,
) -> TrainingArguments:
    """Trainer's arguments; it writes nothing into `scratch`, but asks for a folder.

    `evaluates`: there are validation rows. `evaluates_first`: they are evaluated before the first step of this run.
    Raises ConfigurationError unless `device`, where the model is, is the only one that Trainer would take.
    """
    scheduler: str = hyperparameters.lr_scheduler_type
    if scheduler == "constant" and hyperparameters.warmup_steps:
        scheduler = "constant_with_warmup"  # transformers' plain "constant" ignores the warm-up
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
        report_to=[],
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,  # batches are a few KB of token ids
        remove_unused_columns=False,
        label_names=["labels"],
    )
    if arguments.device != device or arguments.n_gpu > 1:
        raise ConfigurationError(
            f"training would run on {arguments.device} of {arguments.n_gpu} devices, away from the model on "
            f"{device}: give each worker process one device, with CUDA_VISIBLE_DEVICES"
        )
    return arguments
