"""How much memory a training takes."""

import resource
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tandem.specs import Hyperparameters
from worker.training.files import TrainingFiles
from worker.training.room import activation_bytes, adapter_bytes

STATM = Path("/proc/self/statm")
KIBIBYTE = 1024
"""The unit of ru_maxrss on Linux."""


def memory_bytes(device: torch.device) -> int:
    """Of a GPU, what torch's tensors in this process take there; else what the process takes of the machine's."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE  # the most that it ever took


def needed_bytes(model: PeftModel, files: TrainingFiles, hyperparameters: Hyperparameters) -> int:
    """What to hold of the room: for the adapter, and for the longest micro-batch that these rows can make."""
    twin = cast("PreTrainedModel", model.get_base_model())
    config = twin.config.get_text_config()
    hidden = config.hidden_size
    adapter = adapter_bytes(
        sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad),
        accumulates=hyperparameters.gradient_accumulation_steps > 1,
    )
    return adapter + activation_bytes(
        tokens=hyperparameters.batch_size * max(files.training.lengths, default=0),
        layers=config.num_hidden_layers,
        hidden=hidden,
        # Four times the hidden size is what models without a setting for it have.
        intermediate=getattr(config, "intermediate_size", None) or 4 * hidden,
        value_bytes=twin.dtype.itemsize,
    )
