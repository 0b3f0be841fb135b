"""token-classification: a tag for each word, such as what kind of named entity it belongs to."""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.specs import TrainingRow
from tandem.specs.training_rows import TokenClassificationRow
from tandem.training_rows import labels_of, refuse_unknown_labels
from worker.training.data import EncodedData, Example
from worker.training.encoding import EncodedRow
from worker.training.loss import IGNORED_LABEL
from worker.training.objectives.entities import entities, f1
from worker.training.objectives.headed import HeadedObjective
from worker.training.objectives.objective import Metric, wrong_row

TASK: Final = "token-classification"


class TokenClassification(HeadedObjective):
    task_type: ClassVar[str] = "TOKEN_CLS"

    def __init__(
        self,
        body: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        training_rows: Iterable[TrainingRow],
    ) -> None:
        """Raises InvalidTrainingData unless `training_rows` have at least two tags."""
        labels = labels_of(TASK, training_rows)
        super().__init__(TASK, body, tokenizer, max_tokens, labels)
        self._number = {label: number for number, label in enumerate(labels)}

    def encode_row(self, row: TrainingRow) -> EncodedRow:
        """One example a row. Its `labels` are one a token: the tag's number at a word's first token, else -100."""
        if not isinstance(row, TokenClassificationRow):
            raise wrong_row(TASK)
        refuse_unknown_labels(row, self._number)
        example, is_cut = self._encode(row)
        has_words = any(label != IGNORED_LABEL for label in example.labels)
        return EncodedRow((example,) if has_words else (), is_cut)

    def metric(self, validation: EncodedData) -> Metric:
        return Tags(validation.examples, self.head.labels)

    def _encode(self, row: TokenClassificationRow) -> tuple[Example, bool]:
        """The words are joined by spaces and tokenized as one text, as serving tokenizes it.

        A tokenizer's own way for split words (`is_split_into_words`) gives the same, but BPE tokenizers refuse it
        unless they were built for it.
        """
        text = " ".join(row.tokens)
        word_at = [word for word, token in enumerate(row.tokens) for _ in range(len(token) + 1)]
        encoding = self.tokenizer(
            text,
            truncation=True,
            max_length=self.max_tokens,
            return_offsets_mapping=True,
            return_overflowing_tokens=True,
            verbose=False,
        )
        ids: list[int] = encoding["input_ids"][0]
        labels: list[int] = []
        last_word = -1
        for start, end in encoding["offset_mapping"][0]:
            # A token that begins with the space before a word, as byte-level BPE's do, ends within the word.
            is_of_a_word = end > start and not text[end - 1].isspace()
            word = word_at[end - 1] if is_of_a_word else last_word
            labels.append(self._number[row.tags[word]] if word > last_word else IGNORED_LABEL)
            last_word = max(word, last_word)
        types = encoding["token_type_ids"][0] if "token_type_ids" in encoding else None
        example = Example(tuple(ids), tuple(labels), None if types is None else tuple(types))
        return example, len(encoding["input_ids"]) > 1


class Tags:
    """The share of words with the right tag, and precision, recall and F1 of whole entities (BIO).

    Over the words that were within the limit of tokens.
    """

    def __init__(self, examples: Sequence[Example], labels: Sequence[str]) -> None:
        self._examples = examples
        self._labels = labels
        self._rows = 0
        self._words = self._right_words = 0
        self._expected = self._predicted = self._right = 0

    def add(self, logits: Tensor) -> None:
        for classes in logits.argmax(dim=-1).tolist():
            expected, predicted = self._tags(self._examples[self._rows].labels, classes)
            self._rows += 1
            self._words += len(expected)
            self._right_words += sum(one == other for one, other in zip(expected, predicted, strict=True))
            expected_entities, predicted_entities = entities(expected), entities(predicted)
            self._expected += len(expected_entities)
            self._predicted += len(predicted_entities)
            self._right += len(expected_entities & predicted_entities)

    def figures(self) -> dict[str, float]:
        precision = self._right / self._predicted if self._predicted else 0.0
        recall = self._right / self._expected if self._expected else 0.0
        return {
            "accuracy": self._right_words / self._words,
            "precision": precision,
            "recall": recall,
            "f1": f1(precision, recall),
        }

    def _tags(self, labels: Sequence[int], classes: Sequence[int]) -> tuple[list[str], list[str]]:
        """The expected and the predicted tag of each word of a row; `classes` may have padding after its tokens."""
        places = [place for place, label in enumerate(labels) if label != IGNORED_LABEL]
        return [self._labels[labels[place]] for place in places], [self._labels[classes[place]] for place in places]
