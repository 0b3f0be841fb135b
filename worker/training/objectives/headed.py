"""What the objectives with a head share: the tokenizer, the batches, and a cross-entropy on the head's logits."""

import copy
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.errors import UnsupportedTask
from tandem.specs.finetune import FineTuneTask
from worker.training.data import Example, padded
from worker.training.heads import Head
from worker.training.loss import IGNORED_LABEL
from worker.training.objectives.objective import Batch, BatchLoss, Loss, Objective
from worker.training.virtual_tokens import ModelInputs


class HeadedObjective(Objective):
    """An encoder's body with a new head, whose logits have one class distribution for each label."""

    def __init__(
        self,
        task: FineTuneTask,
        body: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        labels: tuple[str, ...],
    ) -> None:
        """Raises UnsupportedTask for a tokenizer that cannot say where in the text its tokens stand."""
        if not tokenizer.is_fast:
            raise UnsupportedTask(
                f"the model's tokenizer, {type(tokenizer).__name__}, does not say where in the text a token stands: "
                f"{task} cannot be learned with it",
                param="model",
            )
        self.head: Head = Head(task, labels)
        # Cutting texts is a setting of the tokenizer, not of a call: the resident's own, which serving threads use
        # meanwhile, would cut theirs.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.truncation_side = "right"
        self.max_tokens = min(max_tokens, context_tokens(body, tokenizer))
        # RoBERTa finds its positions by the padding id of its configuration.
        candidates = (getattr(body.config, "pad_token_id", None), tokenizer.pad_token_id, 0)
        self._padding = next(token for token in candidates if isinstance(token, int))
        self._type_padding = tokenizer.pad_token_type_id

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = {
            "input_ids": padded([example.input_ids for example in examples], self._padding),
            "attention_mask": padded([[1] * len(example.input_ids) for example in examples], 0),
            "labels": padded([example.labels for example in examples], IGNORED_LABEL),
        }
        types = [example.token_type_ids for example in examples if example.token_type_ids is not None]
        if len(types) == len(examples):
            batch["token_type_ids"] = padded(types, self._type_padding)
        return batch

    def loss(
        self,
        twin: PreTrainedModel,
        give_way: Callable[[], None],
        inputs: ModelInputs,  # noqa: ARG002 - virtual tokens are no part of these tasks
    ) -> Loss:
        """Cross-entropy, without chunks: a head's logits are few, and soon computed."""

        def loss(batch: Batch, denominator: Tensor | float) -> BatchLoss:
            logits, labels = self.logits(twin, batch), batch["labels"]
            give_way()
            total = F.cross_entropy(
                logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
            )
            right = (logits.detach().argmax(dim=-1) == labels).sum()
            return BatchLoss(total / denominator, {"accuracy": right}, logits)

        return loss

    def logits(self, twin: PreTrainedModel, batch: Batch) -> Tensor:
        """[rows, labels of a row, classes]: as many distributions as the row has labels."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits: Tensor = twin(**inputs).logits
        return logits


def context_tokens(body: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens in the longest text that the model takes.

    A table of learned positions is the model's limit. RoBERTa keeps its first entries, up to the padding id's, free.
    """
    limits = [int(tokenizer.model_max_length)]
    if isinstance(positions := getattr(body.config, "max_position_embeddings", None), int):
        limits.append(positions)
    for name, module in body.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - reserved)
    return min(limits)
