"""What an objective is: how one task's rows become examples, a loss, and figures of quality."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.errors import InvalidTrainingData
from tandem.specs import TrainingRow
from tandem.specs.finetune import FineTuneTask
from tandem.training_rows import row_example
from worker.training.data import EncodedData, Example
from worker.training.encoding import EncodedRow, encode_rows
from worker.training.heads import Head
from worker.training.virtual_tokens import ModelInputs

Batch = Mapping[str, Tensor]
"""A model's inputs by name, [rows, tokens] each, and `labels`."""


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """What one batch has come to."""

    loss: Tensor
    """The sum over the batch's labels divided by the denominator that was given: an fp32 scalar."""
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    """Figures by name, each summed over the labels: their mean is the sum over the number of labels."""
    logits: Tensor | None = None
    """What the loss was computed from; None where it never exists whole."""


class Loss(Protocol):
    """The loss of one batch."""

    def __call__(self, batch: Batch, denominator: Tensor | float) -> BatchLoss: ...


class Metric(Protocol):
    """Figures of quality over a validation set, whose batches are added in order."""

    def add(self, logits: Tensor) -> None:
        """Take the logits of the next examples."""

    def figures(self) -> dict[str, float]:
        """Name → value, JSON-ready."""


class Objective(ABC):
    """What a training learns."""

    task_type: ClassVar[str]
    """PEFT's name for the task."""
    tokenizer: PreTrainedTokenizerBase
    """What rows are tokenized with."""
    adds_up: ClassVar[bool] = True
    """Whether the loss of a batch is the sum of those of its rows, however they are spread over forward passes."""
    head: Head | None = None
    """What is put on the resident's body; None where the resident is trained as it is."""

    @abstractmethod
    def encode_row(self, row: TrainingRow) -> EncodedRow:
        """Tokenize a row. Raises InvalidTrainingData, without the row's place, for one that cannot be used."""

    def encode(
        self,
        rows: Iterable[TrainingRow],
        *,
        param: str = "training_file",
        folder: Path | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> EncodedData:
        """Tokenize rows, one by one, into a file of `folder`; see `encode_rows`, also for what it raises."""
        labels = () if self.head is None else self.head.labels
        return encode_rows(rows, self.encode_row, labels=labels, param=param, folder=folder, check=check)

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Make a batch, padded on the right. Its `labels` are -100 where there is nothing to learn."""

    def drop_unused(self, twin: PreTrainedModel) -> None:  # noqa: B027 - most use all of it
        """Take out of a new twin what the loss does not reach: an adapter of it would never learn."""

    @abstractmethod
    def loss(self, twin: PreTrainedModel, give_way: Callable[[], None], inputs: ModelInputs) -> Loss:
        """The loss of `twin`, which has its adapter and is in eval mode; it calls `give_way` where its work can be
        cut. `inputs` puts an adapter's virtual tokens before a batch's. Training must hold the device."""

    def metric(self, validation: EncodedData) -> Metric | None:  # noqa: ARG002 - for those that have one
        """A new metric over what `encode` has made of the validation rows; None where the loss says all."""
        return None


def wrong_row(task: FineTuneTask) -> InvalidTrainingData:
    """A row in another task's shape."""
    return InvalidTrainingData(f"a row for {task} is {row_example(task)}")
