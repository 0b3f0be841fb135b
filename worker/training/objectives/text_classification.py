"""text-classification: one label for a text, or for a pair of texts."""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.specs import TrainingRow
from tandem.specs.training_rows import TextClassificationRow
from tandem.training_rows import labels_of, refuse_unknown_labels
from worker.training.data import EncodedData, Example
from worker.training.encoding import EncodedRow
from worker.training.objectives.headed import HeadedObjective
from worker.training.objectives.objective import Batch, Metric, wrong_row

TASK: Final = "text-classification"


class TextClassification(HeadedObjective):
    task_type: ClassVar[str] = "SEQ_CLS"

    def __init__(
        self,
        body: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        training_rows: Iterable[TrainingRow],
    ) -> None:
        """Raises InvalidTrainingData unless `training_rows` have at least two labels."""
        labels = labels_of(TASK, training_rows)
        super().__init__(TASK, body, tokenizer, max_tokens, labels)
        self._number = {label: number for number, label in enumerate(labels)}

    def encode_row(self, row: TrainingRow) -> EncodedRow:
        """One example a row. Its `labels` are one: the class's number."""
        if not isinstance(row, TextClassificationRow):
            raise wrong_row(TASK)
        refuse_unknown_labels(row, self._number)
        encoding = self._tokenize(row, truncation=True)
        ids = encoding["input_ids"]
        is_cut = (
            len(ids) == self.max_tokens and len(self._tokenize(row, truncation=False)["input_ids"]) > self.max_tokens
        )
        types = encoding.get("token_type_ids")
        example = Example(tuple(ids), (self._number[row.label],), None if types is None else tuple(types))
        return EncodedRow((example,), is_cut)

    def metric(self, validation: EncodedData) -> Metric:
        return Accuracy([example.labels[0] for example in validation.examples])

    def logits(self, twin: PreTrainedModel, batch: Batch) -> Tensor:
        """[rows, 1, classes]."""
        return super().logits(twin, batch).unsqueeze(1)

    def _tokenize(self, row: TextClassificationRow, *, truncation: bool) -> dict[str, list[int]]:
        encoding = self.tokenizer(
            row.text, row.text_pair, truncation=truncation, max_length=self.max_tokens, verbose=False
        )
        return dict(encoding)


class Accuracy:
    """The share of texts whose most likely class is theirs."""

    def __init__(self, classes: Sequence[int]) -> None:
        self._classes = classes
        self._predicted: list[int] = []

    def add(self, logits: Tensor) -> None:
        self._predicted.extend(logits.argmax(dim=-1).flatten().tolist())

    def figures(self) -> dict[str, float]:
        right = sum(one == other for one, other in zip(self._predicted, self._classes, strict=True))
        return {"accuracy": right / len(self._classes)}
