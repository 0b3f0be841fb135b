"""text-generation: the answers of conversations and completions, token by token."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.specs import ChatRow, CompletionRow, TrainingRow
from worker.training.data import EncodedData, Example, PaddedBatch, encode_rows
from worker.training.loss import AnswerLoss
from worker.training.objectives.objective import Batch, Loss, Objective, wrong_row
from worker.training.virtual_tokens import ModelInputs


class TextGeneration(Objective):
    task_type: ClassVar[str] = "CAUSAL_LM"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._collate = PaddedBatch(tokenizer)

    def encode(self, rows: Sequence[TrainingRow], *, param: str = "training_file") -> EncodedData:
        texts: list[ChatRow | CompletionRow] = []
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, ChatRow | CompletionRow):
                raise wrong_row("text-generation", number, param)
            texts.append(row)
        return encode_rows(texts, self.tokenizer, self._max_tokens, param=param)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return self._collate(examples)

    def loss(self, twin: PreTrainedModel, give_way: Callable[[], None], inputs: ModelInputs) -> Loss:
        answer_loss = AnswerLoss(twin, give_way, inputs)

        def loss(batch: Batch, denominator: Tensor | float) -> tuple[Tensor, None]:
            return answer_loss(batch["input_ids"], batch["labels"], denominator), None

        return loss
