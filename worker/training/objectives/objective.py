"""What an objective is: how one task's rows become examples, a loss, and figures of quality."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.errors import InvalidTrainingData
from tandem.specs import TrainingRow
from tandem.specs.finetune import FineTuneTask
from tandem.training_rows import ROW_EXAMPLES
from worker.training.data import EncodedData, Example
from worker.training.heads import Head
from worker.training.virtual_tokens import ModelInputs

Batch = Mapping[str, Tensor]
"""A model's inputs by name, [rows, tokens] each, and `labels`."""


class Loss(Protocol):
    """The loss of one batch."""

    def __call__(self, batch: Batch, denominator: Tensor | float) -> tuple[Tensor, Tensor | None]:
        """The sum over the batch's labels divided by `denominator`, an fp32 scalar; and the logits that it was
        computed from, or None where they never exist whole."""


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
    head: Head | None = None
    """What is put on the resident's body; None where the resident is trained as it is."""

    @abstractmethod
    def encode(self, rows: Sequence[TrainingRow], *, param: str = "training_file") -> EncodedData:
        """Tokenize rows. Raises InvalidTrainingData (with `param`) for rows that cannot be used."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Make a batch, padded on the right. Its `labels` are -100 where there is nothing to learn."""

    @abstractmethod
    def loss(self, twin: PreTrainedModel, give_way: Callable[[], None], inputs: ModelInputs) -> Loss:
        """The loss of `twin`, which has its adapter and is in eval mode; it calls `give_way` where its work can be
        cut. `inputs` puts an adapter's virtual tokens before a batch's. Training must hold the device."""

    def metric(self, validation: EncodedData) -> Metric | None:  # noqa: ARG002 - for those that have one
        """A new metric over what `encode` has made of the validation rows; None where the loss says all."""
        return None


def wrong_row(task: FineTuneTask, number: int, param: str) -> InvalidTrainingData:
    """A row in another task's shape."""
    return InvalidTrainingData(f"row {number}: a row for {task} is {ROW_EXAMPLES[task]}", param=param)
