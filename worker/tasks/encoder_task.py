"""What the encoder tasks share: how a text becomes token ids, and how rows of ids become one padded batch."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from tandem.errors import InvalidRequest, PromptTooLong
from worker.tasks.batched_task import BatchedTask, Pause

ParametersT = TypeVar("ParametersT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One text as its model reads it, special tokens included."""

    input_ids: list[int]
    token_type_ids: list[int] | None
    """None where the tokenizer makes none."""

    @property
    def company(self) -> None:
        """Any texts run together."""
        return

    def __len__(self) -> int:
        return len(self.input_ids)


class EncoderTask(BatchedTask[ParametersT, EncodedText], Generic[ParametersT, ResultT]):
    """A task whose input is one text and one piece: run a padded batch, turn each row's output into its result."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """`model` has the head that MODEL_CLASSES names for the task; `tokenizer` is a fast tokenizer."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_tokens = _max_tokens(model, tokenizer)
        # Where a model finds its positions by the padding id (RoBERTa), or its last token (decoders with a
        # classification head), it reads its own configuration.
        candidates = (getattr(model.config, "pad_token_id", None), tokenizer.pad_token_id, 0)
        self._pad_id = next(pad for pad in candidates if pad is not None)
        # A tokenizer.json may come with truncation or padding switched on. The first call switches it off for good;
        # made here, because switching while another thread encodes is an error in the tokenizers library.
        self._tokenize([""])

    def encode(self, inputs: Sequence[str], parameters: ParametersT, *, first: int = 0) -> list[list[EncodedText]]:
        """Token ids of each text, in order. Safe to call from several threads.

        Raises:
            PromptTooLong: a text has more tokens than the model takes.
            InvalidRequest: a text cannot be used for this task.
            Both name the input by its index, as `inputs[3]`.
        """
        names = [f"inputs[{first + place}]" for place in range(len(inputs))]
        return [[row] for row in self.encode_named(inputs, names, parameters)]

    def encode_named(self, texts: Sequence[str], names: Sequence[str], parameters: ParametersT) -> list[EncodedText]:
        """The same, with a name of its own for each text in errors."""
        encoded = self._tokenize(texts)
        rows = []
        for index, (name, ids) in enumerate(zip(names, encoded["input_ids"], strict=True)):
            kinds = encoded["token_type_ids"][index] if "token_type_ids" in encoded else None
            row = EncodedText(ids, kinds)
            if not ids:
                raise InvalidRequest(f"{name} has no tokens; send a text with at least one word.", param=name)
            if len(row) > self.max_tokens:
                row = self.shorten(row, encoded["special_tokens_mask"][index], name, parameters)
            self.check(row, name)
            rows.append(row)
        return rows

    def shorten(
        self, row: EncodedText, special_tokens_mask: list[int], name: str, parameters: ParametersT
    ) -> EncodedText:
        """What to do with a row of more than `max_tokens`: refuse it, unless the task can cut it.

        `special_tokens_mask` has a 1 for each token that the tokenizer added around the text.
        """
        del special_tokens_mask, parameters
        raise PromptTooLong(
            f"{name} has {len(row)} tokens; the model takes {self.max_tokens}. Shorten the text or split it.",
            param=name,
        )

    def check(self, row: EncodedText, name: str) -> None:
        """Refuse a row that the task cannot use, with InvalidRequest(param=name); takes every row by default."""

    def forward(self, pieces: Sequence[EncodedText], pause: Pause) -> Sequence[Tensor]:  # noqa: ARG002 - one step
        """One forward over a padded batch."""
        return list(self.run_rows(pieces))

    def result(self, outputs: Sequence[Tensor], pieces: Sequence[EncodedText], parameters: ParametersT) -> ResultT:
        """The row's result, from its only piece."""
        return self.row_result(outputs[0], pieces[0], parameters)

    @abstractmethod
    def run_rows(self, rows: Sequence[EncodedText]) -> Iterable[Tensor]:
        """One forward over a padded batch; float32 on the CPU, one entry a row (or a tensor [rows, …])."""

    @abstractmethod
    def row_result(self, output: Tensor, row: EncodedText, parameters: ParametersT) -> ResultT:
        """The row's result in huggingface_hub's output shape, from its entry of `run_rows`."""

    def pad(self, rows: Sequence[EncodedText]) -> dict[str, Tensor]:
        """The model's inputs, each [rows, longest], padded at the end, on the model's device."""
        longest = max(len(row) for row in rows)

        def padded(lists: Sequence[Sequence[int]], filler: int) -> Tensor:
            return torch.tensor([[*ids, *[filler] * (longest - len(ids))] for ids in lists], device=self.model.device)

        batch = {
            "input_ids": padded([row.input_ids for row in rows], self._pad_id),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
        }
        kinds = [row.token_type_ids for row in rows if row.token_type_ids is not None]
        if len(kinds) == len(rows):
            batch["token_type_ids"] = padded(kinds, self.tokenizer.pad_token_type_id)
        return batch

    def _tokenize(self, texts: Sequence[Any]) -> Any:
        return self.tokenize_columns(list(texts))

    def tokenize_columns(self, texts: list[str], pairs: list[str] | None = None) -> Any:
        """`input_ids`, `special_tokens_mask` and perhaps `token_type_ids` of each text, or of it and its pair."""
        return self.tokenizer(
            texts,
            pairs,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_special_tokens_mask=True,
            verbose=False,  # no remark on long texts: they are refused by name
        )


def _max_tokens(model: Any, tokenizer: Any) -> int:
    """Tokens in the longest text that `model` and `tokenizer` take.

    A table of learned positions is the model's limit. RoBERTa keeps its first entries, up to the padding id's, free.
    """
    limits = [int(tokenizer.model_max_length), int(model.config.max_position_embeddings)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - reserved)
    return min(limits)
