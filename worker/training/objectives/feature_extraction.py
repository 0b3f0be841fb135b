"""feature-extraction: texts that belong together get embeddings that are near each other."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.errors import InvalidTrainingData
from tandem.specs import TrainingRow
from tandem.specs.training_rows import AnchorRow
from worker.tasks.pooling import model_poolings, pooled_vectors
from worker.training.data import Example, padded
from worker.training.encoding import EncodedRow
from worker.training.objectives.headed import context_tokens
from worker.training.objectives.objective import Batch, BatchLoss, Loss, Objective, wrong_row
from worker.training.virtual_tokens import ModelInputs

TASK: Final = "feature-extraction"

SCALE = 20.0
"""What cosines are multiplied with before the softmax, without unit: the default of sentence-transformers."""

ROW_TEXTS = 3
"""Texts of a row: its anchor, its positive, and the negative that it may have."""


class FeatureExtraction(Objective):
    """In-batch negatives: each anchor is to find its own positive among those of its batch, and all negatives.

    The loss is sentence-transformers' MultipleNegativesRankingLoss: the cross-entropy over scaled cosines, after
    Henderson et al., "Efficient Natural Language Response Suggestion for Smart Reply" (2017), section 4.4. It depends
    on which rows share a batch: with accumulation, and where memory has halved a batch, those of one forward do.

    Embeddings are pooled and normalised as the model's are when they are served, without a prompt. The adapter has no
    head: what it changes is the body.
    """

    task_type: ClassVar[str] = "FEATURE_EXTRACTION"
    adds_up: ClassVar[bool] = False

    def __init__(self, resident: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        """Each of a row's texts has at most `max_tokens`, or what the model reads.

        Raises InvalidModel where the model's pooling is not served.
        """
        self._poolings = model_poolings(resident)
        # Cutting texts is a setting of the tokenizer, not of a call: the resident's own would cut what is served.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.truncation_side = "right"
        self._max_tokens = min(max_tokens, context_tokens(resident, tokenizer))
        # RoBERTa finds its positions by the padding id of its configuration.
        candidates = (getattr(resident.config, "pad_token_id", None), tokenizer.pad_token_id, 0)
        self._padding = next(token for token in candidates if isinstance(token, int))

    def encode_row(self, row: TrainingRow) -> EncodedRow:
        """One example a row: its texts one behind the other. Its `labels` are one, which says that the row counts."""
        if not isinstance(row, AnchorRow):
            raise wrong_row(TASK)
        texts = [text for text in (row.anchor, row.positive, row.negative) if text is not None]
        encodings = [self._tokenize(text, truncation=True) for text in texts]
        lengths = tuple(len(encoding["input_ids"]) for encoding in encodings)
        if 0 in lengths:
            raise InvalidTrainingData(f"{texts[lengths.index(0)]!r} has no tokens")
        is_cut = any(
            length == self._max_tokens and len(self._tokenize(text, truncation=False)["input_ids"]) > self._max_tokens
            for text, length in zip(texts, lengths, strict=True)
        )
        ids = [token for encoding in encodings for token in encoding["input_ids"]]
        types = [kind for encoding in encodings for kind in encoding.get("token_type_ids", ())]
        return EncodedRow((Example(tuple(ids), (0,), tuple(types) or None, lengths),), is_cut)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Inputs are [rows, 3, tokens]: the anchor, the positive, and the negative, whose mask is 0 where a row has
        none. `labels` are [rows, 1]."""
        batch = {
            "input_ids": _texts([example.input_ids for example in examples], examples, self._padding),
            "attention_mask": _texts([[1] * len(example.input_ids) for example in examples], examples, 0),
            "labels": torch.zeros(len(examples), 1, dtype=torch.int64),
        }
        types = [example.token_type_ids for example in examples if example.token_type_ids is not None]
        if len(types) == len(examples):
            batch["token_type_ids"] = _texts(types, examples, self.tokenizer.pad_token_type_id)
        return batch

    def drop_unused(self, twin: PreTrainedModel) -> None:
        """The pooler, BERT's and its kin's: embeddings are pooled from the token vectors before it."""
        if "add_pooling_layer" in inspect.signature(type(twin)).parameters:  # then the class can do without
            twin.register_module("pooler", None)

    def loss(
        self,
        twin: PreTrainedModel,
        give_way: Callable[[], None],
        inputs: ModelInputs,  # noqa: ARG002 - virtual tokens are no part of this task
    ) -> Loss:
        def loss(batch: Batch, denominator: Tensor | float) -> BatchLoss:
            embeddings, has_text = self._embeddings(twin, batch), _has_text(batch)
            give_way()
            # [rows, 3] → the place of each text among the embeddings, which are of the texts that there are.
            places = (has_text.flatten().cumsum(0) - 1).view_as(has_text)
            anchors, positives = embeddings[places[:, 0]], embeddings[places[:, 1]]
            negatives = embeddings[places[:, 2][has_text[:, 2]]]
            scores = SCALE * anchors @ torch.cat([positives, negatives]).T  # [rows, rows + negatives]
            own = torch.arange(len(anchors), device=scores.device)
            total = F.cross_entropy(scores, own, reduction="sum")
            right = (scores.detach().argmax(dim=-1) == own).sum()
            return BatchLoss(total / denominator, {"in_batch_accuracy": right})

        return loss

    def _embeddings(self, twin: PreTrainedModel, batch: Batch) -> Tensor:
        """Of the texts that there are, row after row: [texts, hidden · poolings] in fp32, each of length 1."""
        has_text = _has_text(batch)
        rows = {name: tensor[has_text] for name, tensor in batch.items() if name != "labels"}
        hidden = twin(**rows).last_hidden_state.float()
        return F.normalize(pooled_vectors(hidden, rows["attention_mask"].unsqueeze(-1), self._poolings), dim=-1)

    def _tokenize(self, text: str, *, truncation: bool) -> dict[str, list[int]]:
        return dict(self.tokenizer(text, truncation=truncation, max_length=self._max_tokens, verbose=False))


def _has_text(batch: Batch) -> Tensor:
    """[rows, 3]: whether the row has such a text."""
    return batch["attention_mask"][..., 0] != 0


def _texts(sequences: Sequence[Sequence[int]], examples: Sequence[Example], padding: int) -> Tensor:
    """[rows, 3, the longest text's tokens], from what each example has for all its texts, one behind the other."""
    texts = []
    for sequence, example in zip(sequences, examples, strict=True):
        lengths = [*(example.lengths or ()), 0][:ROW_TEXTS]
        begin = 0
        for length in lengths:
            texts.append(sequence[begin : begin + length])
            begin += length
    rows: Tensor = padded(texts, padding).unflatten(0, (len(examples), ROW_TEXTS))
    return rows
