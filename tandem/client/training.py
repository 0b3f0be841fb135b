"""What a producer may say about a training; `tandem.specs.FineTuneSpec` has the limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from tandem.client.scheduling import SchedulingOptions, scheduling_fields


class TrainingOptions(SchedulingOptions, total=False):
    """Keyword arguments of `Tandem.finetune`, beside the model and its data."""

    task: str
    """What is learned, text-generation unless it says otherwise. Tasks with a head of their own train it as well."""
    suffix: str
    """A word of yours in the adapter's id."""
    method: Mapping[str, Any]
    """What the adapter is made of, such as `{"r": 8}` or `{"type": "ia3"}`."""
    hyperparameters: Mapping[str, Any]
    """How long and how fast, such as `{"max_steps": 100}`."""
    objective: Mapping[str, Any]
    """`{"type": "dpo", "beta": 0.1}` learns from pairs of answers of which one is preferred."""
    on_broken_row: str
    """`fail` (the default) or `skip`."""
    publish_checkpoints: bool
    """Whether every checkpoint can be served, by an id of its own."""
    save_total_limit: int
    """Published checkpoints that are kept."""
    report_to: Sequence[str]
    """Trackers that the worker reports metrics to, such as `tensorboard`."""


def training_fields(options: TrainingOptions) -> dict[str, Any]:
    """The options as fields of a job's spec. One that is unknown goes along: the service refuses it by its name."""
    return scheduling_fields(options)
