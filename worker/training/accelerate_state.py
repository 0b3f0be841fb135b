"""accelerate's process-wide state, kept apart for each training.

accelerate is written for one training a process. Its `GradientState` says whether the optimizer's next step is a real
one or belongs to an accumulation, and is one dict for all instances: two trainings at once would skip each other's
steps. Its `PartialState` and `AcceleratorState` say which device is used, and transformers' TrainingArguments clear
both when they are made, while another training may be reading them.
"""

import threading
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

_setting_up = threading.Lock()


def set_up(device: torch.device) -> None:
    """Say once for this process which device is trained on; `TrainingArguments` are to use the configured state.

    The state of another kind of device is replaced, so no training may run on that one: a worker has one device.
    """
    with _setting_up:
        if PartialState._shared_state and PartialState().device.type != device.type:
            AcceleratorState._reset_state(reset_partial_state=True)
        PartialState(cpu=device.type == "cpu")


def separate(accelerator: Accelerator) -> None:
    """Give this accelerator a `GradientState` of its own, as it is at the beginning.

    What it prepares from now on (optimizer, scheduler, data loaders) must be given the same one, with `attach`.
    """
    state = accelerator.gradient_state
    state.__dict__ = dict(state.__dict__)


def attach(accelerator: Accelerator, *prepared: Any) -> None:
    """Let what the accelerator has prepared read the accelerator's `GradientState`.

    Things without one (a scheduler that accelerate left as it was) stay as they are.
    """
    for one in prepared:
        if hasattr(one, "gradient_state"):
            one.gradient_state = accelerator.gradient_state
