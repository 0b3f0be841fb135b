"""text2text-generation: an encoder-decoder learns what to write for a text."""

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.errors import UnsupportedTask
from tandem.specs import TrainingRow
from tandem.specs.training_rows import TextToTextRow
from worker.tasks.positions import input_positions, written_positions
from worker.training.data import Example, padded
from worker.training.encoding import EncodedRow
from worker.training.loss import IGNORED_LABEL
from worker.training.objectives.objective import Batch, BatchLoss, Loss, Objective, wrong_row
from worker.training.target_loss import TargetLoss
from worker.training.virtual_tokens import ModelInputs

TASK: Final = "text2text-generation"


class TextToText(Objective):
    """An example's `input_ids` are what the encoder reads, its `labels` the tokens that the decoder is to write."""

    task_type: ClassVar[str] = "SEQ_2_SEQ_LM"

    def __init__(self, resident: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        """A row's two texts have at most `max_tokens` each, or what the model has positions for.

        Raises UnsupportedTask for a model that cannot say what its decoder reads, and for one whose tokenizer must be
        told the languages of its texts.
        """
        if not hasattr(resident, "prepare_decoder_input_ids_from_labels"):
            raise UnsupportedTask(
                f"{type(resident).__name__} has no rule for what its decoder reads while it learns: train a T5, a "
                "BART or a Marian, or one of their kin",
                param="model",
            )
        if hasattr(tokenizer, "_build_translation_inputs"):
            raise UnsupportedTask(
                f"{type(tokenizer).__name__} must be told the languages of the texts, which rows for {TASK} do not "
                "say: train a model of one pair of languages",
                param="model",
            )
        # Cutting texts, and changing between the languages of inputs and targets, are settings of the tokenizer: the
        # resident's own, which serving threads use meanwhile, would change theirs.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.truncation_side = "right"
        self._max_input = min(max_tokens, input_positions(resident) or max_tokens)
        self._max_target = min(max_tokens, written_positions(resident) or max_tokens)
        # The attention mask hides padding, so any token does.
        self._padding = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0

    def encode_row(self, row: TrainingRow) -> EncodedRow:
        """One example a row; both texts are cut before their closing token."""
        if not isinstance(row, TextToTextRow):
            raise wrong_row(TASK)
        read, is_read_cut = self._tokens(self._max_input, text=row.input)
        written, is_written_cut = self._tokens(self._max_target, text_target=row.target)
        return EncodedRow((Example(read, written),), is_read_cut or is_written_cut)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return {
            "input_ids": padded([example.input_ids for example in examples], self._padding),
            "attention_mask": padded([[1] * len(example.input_ids) for example in examples], 0),
            "labels": padded([example.labels for example in examples], IGNORED_LABEL),
        }

    def loss(
        self,
        twin: PreTrainedModel,
        give_way: Callable[[], None],
        inputs: ModelInputs,  # noqa: ARG002 - virtual tokens are no part of this task
    ) -> Loss:
        target_loss = TargetLoss(twin, give_way)

        def loss(batch: Batch, denominator: Tensor | float) -> BatchLoss:
            targets = target_loss(batch)
            return BatchLoss(targets.losses.sum() / denominator, {"mean_token_accuracy": targets.right.sum()})

        return loss

    def _tokens(self, limit: int, **text: str) -> tuple[tuple[int, ...], bool]:
        """At most `limit` tokens, and whether there were more. The target's are its own vocabulary's (Marian)."""
        ids = self.tokenizer(**text, verbose=False)["input_ids"]
        if len(ids) <= limit:
            return tuple(ids), False
        cut = self.tokenizer(**text, truncation=True, max_length=limit, verbose=False)["input_ids"]
        return tuple(cut), True
