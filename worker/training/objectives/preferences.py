"""Direct preference optimization: preferred answers become more probable than the others, compared with the base.

Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model" (2023), equation 7.
It is written here rather than taken from TRL: the loss is a few lines over log-probabilities that our chunked loss
gives, and TRL's trainer would bring its own data pipeline and its whole logits (batch by tokens by vocabulary),
which our turns and memory limits exist to avoid. The reference is the base itself, with the adapter off: there is
no second copy.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.errors import InvalidTrainingData
from tandem.specs import TrainingRow
from tandem.specs.training_rows import PreferenceRow
from tandem.training_rows import PREFERENCE_EXAMPLE
from worker.training.data import Example, PaddedBatch
from worker.training.encoding import EncodedRow
from worker.training.loss import IGNORED_LABEL, AnswerLoss
from worker.training.objectives.objective import Batch, BatchLoss, Loss, Objective
from worker.training.texts import encode_answer
from worker.training.virtual_tokens import ModelInputs


class Preferences(Objective):
    task_type: ClassVar[str] = "CAUSAL_LM"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, *, beta: float) -> None:
        self.tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._beta = beta
        self._collate = PaddedBatch(tokenizer)

    def encode_row(self, row: TrainingRow) -> EncodedRow:
        """One example a pair: the preferred answer with its prompt, and behind it the other with its prompt.

        Each is cut at its end; a pair of which either has no answer left is not used.
        """
        if not isinstance(row, PreferenceRow):
            raise InvalidTrainingData(f"a row for dpo is {PREFERENCE_EXAMPLE}")
        wholes = [
            encode_answer(row.prompt, answer, row.tools, self.tokenizer) for answer in (row.chosen, row.rejected)
        ]
        cut = [Example(one.input_ids[: self._max_tokens], one.labels[: self._max_tokens]) for one in wholes]
        is_cut = any(len(one.input_ids) > self._max_tokens for one in wholes)
        if not all(any(label != IGNORED_LABEL for label in one.labels) for one in cut):
            return EncodedRow((), is_cut)
        chosen, rejected = cut
        pair = Example(
            (*chosen.input_ids, *rejected.input_ids),
            (*chosen.labels, *rejected.labels),
            lengths=(len(chosen.input_ids), len(rejected.input_ids)),
        )
        return EncodedRow((pair,), is_cut)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `targets` are [pairs, 2, tokens], the preferred answer first; `labels`,
        by which a batch's weight is counted, are [pairs, 2] with one that counts. It is the second, since Trainer
        leaves the first out for a model that predicts the next token."""
        batch = self._collate([half for example in examples for half in _halves(example)])
        batch["targets"] = batch.pop("labels")
        pairs = {name: tensor.unflatten(0, (len(examples), 2)) for name, tensor in batch.items()}
        return {**pairs, "labels": torch.tensor([[IGNORED_LABEL, 0]] * len(examples))}

    def loss(self, twin: PreTrainedModel, give_way: Callable[[], None], inputs: ModelInputs) -> Loss:
        trained = AnswerLoss(twin, give_way, inputs)
        reference = AnswerLoss(twin, give_way, lambda ids: {"input_ids": ids})

        def loss(batch: Batch, denominator: Tensor | float) -> BatchLoss:
            with torch.no_grad(), adapter_off(twin):
                before = log_probabilities(reference, batch)
            now = log_probabilities(trained, batch)
            rewards = self._beta * (now - before)  # [pairs, 2]
            margins = rewards[:, 0] - rewards[:, 1]
            return BatchLoss(-F.logsigmoid(margins).sum() / denominator, _figures(rewards.detach()))

        return loss


def log_probabilities(answer_loss: AnswerLoss, batch: Batch) -> Tensor:
    """Of each answer, the sum over its tokens: [pairs, 2] in fp32."""
    answers = answer_loss(batch["input_ids"].flatten(0, 1), batch["targets"].flatten(0, 1))
    pairs = len(batch["labels"])
    sums = torch.zeros(2 * pairs, dtype=torch.float32, device=answers.losses.device)
    probabilities: Tensor = -sums.index_add(0, answers.rows, answers.losses).unflatten(0, (pairs, 2))
    return probabilities


@contextmanager
def adapter_off(twin: nn.Module) -> Iterator[None]:
    """Let the twin be the base that it was built on: without its adapter's layers, and without dropout."""
    was_training = twin.training
    layers = [module for module in twin.modules() if isinstance(module, BaseTunerLayer)]
    twin.eval()
    # Not by `enable_adapters`, which also switches gradients of the adapter's weights off and on, too many of them.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
        twin.train(was_training)


def _figures(rewards: Tensor) -> Mapping[str, Tensor]:
    """TRL's names for them; each is summed over the pairs."""
    chosen, rejected = rewards.unbind(1)
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margins": (chosen - rejected).sum(),
        "rewards/accuracies": (chosen > rejected).sum(),
    }


def _halves(example: Example) -> tuple[Example, Example]:
    assert example.lengths is not None
    border = example.lengths[0]
    return (
        Example(example.input_ids[:border], example.labels[:border]),
        Example(example.input_ids[border:], example.labels[border:]),
    )
