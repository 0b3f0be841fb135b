"""What every task's rows become: token ids with labels, what became of a file's rows, and padded batches."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from worker.training.loss import IGNORED_LABEL


@dataclass(frozen=True, slots=True)
class Example:
    """One row, or one window of a longer row, as tokens; or several, one behind the other."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """Which they are is the task's matter. For text-generation one a token: the answer's ids, and -100 elsewhere."""
    token_type_ids: tuple[int, ...] | None = None
    """Which of two texts a token belongs to; None where the tokenizer does not say."""
    lengths: tuple[int, ...] | None = None
    """Tokens of each of the texts that stand one behind the other, where they are several: the rows of a packed
    example, or the two answers of a preference pair, each with its prompt."""


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that cannot be used, and why."""

    line: int
    """In the file, counted from 1; without a file, the number of the row."""
    message: str


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of a file's rows."""

    lines: int
    """Of the file, blank ones included; without a file, its rows."""
    rows: int
    """Those that can be used as they are."""
    tokens: int
    """Tokens of the examples that are used, prompts included; of text2text-generation, of what is read."""
    longest_tokens: int
    """Of one example."""
    mean_tokens: float
    answer_tokens: int
    """Of the tokens, those that carry loss. Where a head is learned, the labels that do: one for each class, tagged
    word, and start or end of a window's answer."""
    truncated_rows: int
    """Rows longer than the limit, cut at their end or into windows; they count among the dropped ones too if those
    are dropped."""
    dropped_rows: int
    """Rows of which no answer is left."""
    duplicate_rows: int
    """Rows that are the same as one before them; they are learned all the same."""
    broken_rows: int
    """Rows that cannot be used and were left out."""
    errors: tuple[BrokenRow, ...]
    """The first of these."""


@dataclass(frozen=True, slots=True)
class EncodedData:
    examples: Sequence[Example]
    report: DataReport
    labels: tuple[str, ...]
    """What the labels' numbers mean, where they are numbers of classes."""
    digest: str
    """SHA-256 of the examples, in order."""
    lengths: "array[int]"
    """Tokens of each example."""
    row_hashes: "array[int]"
    """Of the used rows, 64 bits each: equal ones are the same row."""


class PaddedBatch:
    """Collates examples into tensors [rows, longest row], padded on the right.

    `input_ids` are padded with the tokenizer's padding token, `labels` with -100; `attention_mask` is 1 on real
    tokens. If rows hold several texts, `position_ids` begin at 0 in each of them, and in the padding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # Any token does: padding carries no loss, and in causal attention no real token sees it.
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._padding = next(token for token in candidates if isinstance(token, int))

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = {
            "input_ids": padded([example.input_ids for example in examples], self._padding),
            "attention_mask": padded([[1] * len(example.input_ids) for example in examples], 0),
            "labels": padded([example.labels for example in examples], IGNORED_LABEL),
        }
        if any(example.lengths is not None for example in examples):
            batch["position_ids"] = _positions(examples, batch["input_ids"].shape[1])
        return batch


def _positions(examples: Sequence[Example], width: int) -> Tensor:
    """Each token's place in its own text, [rows, width]."""

    def row(example: Example) -> list[int]:
        lengths = example.lengths or (len(example.input_ids),)
        return [place for length in (*lengths, width - len(example.input_ids)) for place in range(length)]

    return torch.tensor([row(example) for example in examples])


def padded(sequences: Sequence[Sequence[int]], padding: int) -> Tensor:
    """[sequences, the longest one's length], padded on the right."""
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[padding] * (longest - len(sequence))] for sequence in sequences])
