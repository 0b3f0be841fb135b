"""text-generation: the answers of conversations and completions, and plain texts, token by token."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.specs import ChatRow, CompletionRow, TrainingRow
from tandem.specs.training_rows import TextRow
from worker.training.data import Example, PaddedBatch
from worker.training.encoding import EncodedRow
from worker.training.loss import IGNORED_LABEL, AnswerLoss
from worker.training.objectives.objective import Batch, BatchLoss, Loss, Objective, wrong_row
from worker.training.texts import encode_text
from worker.training.virtual_tokens import ModelInputs


class TextGeneration(Objective):
    task_type: ClassVar[str] = "CAUSAL_LM"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._collate = PaddedBatch(tokenizer)

    def encode_row(self, row: TrainingRow) -> EncodedRow:
        """One example a row, cut at its end; none if nothing that is learned is left of it."""
        if not isinstance(row, ChatRow | CompletionRow | TextRow):
            raise wrong_row("text-generation")
        whole = encode_text(row, self.tokenizer)
        example = Example(whole.input_ids[: self._max_tokens], whole.labels[: self._max_tokens])
        has_answer = any(label != IGNORED_LABEL for label in example.labels)
        return EncodedRow((example,) if has_answer else (), len(whole.input_ids) > self._max_tokens)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return self._collate(examples)

    def loss(self, twin: PreTrainedModel, give_way: Callable[[], None], inputs: ModelInputs) -> Loss:
        answer_loss = AnswerLoss(twin, give_way, inputs)

        def loss(batch: Batch, denominator: Tensor | float) -> BatchLoss:
            answers = answer_loss(batch["input_ids"], batch["labels"], batch.get("position_ids"))
            return BatchLoss(answers.losses.sum() / denominator, {"mean_token_accuracy": answers.right.sum()})

        return loss
