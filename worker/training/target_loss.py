"""The loss of an encoder-decoder on what it writes, computed in chunks of tokens as a language model's is."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from worker.training.loss import IGNORED_LABEL, AnswerLosses, chunked_losses


class TargetLoss:
    """The loss of an encoder-decoder on the target tokens of a batch.

    Where the logits are exactly what the head makes of its input, with the bias that BART and its kin add, they are
    computed in chunks; a model that does more to its logits runs whole, in one longer turn.
    """

    def __init__(self, model: PreTrainedModel, give_way: Callable[[], None]) -> None:
        """Runs `model` twice, on a few tokens: it must be in eval mode, and training hold the device."""
        self._model = model
        self._give_way = give_way
        self._head = _head_alone(model)

    @property
    def is_chunked(self) -> bool:
        return self._head is not None

    def __call__(self, batch: Mapping[str, Tensor]) -> AnswerLosses:
        """The losses of the tokens that have a label.

        `batch` has `input_ids` and `attention_mask` [rows, input tokens], and `labels` [rows, target tokens]. The
        decoder reads what the model's own rule makes of the labels: each token's predecessor.
        """
        labels = batch["labels"]
        targets = labels != IGNORED_LABEL
        rows = targets.nonzero()[:, 0]
        inputs = {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "decoder_input_ids": cast("Any", self._model).prepare_decoder_input_ids_from_labels(labels),
        }
        if self._head is None:
            logits = self._model(**inputs).logits[targets].float()
            self._give_way()
            losses = F.cross_entropy(logits, labels[targets], reduction="none")
            return AnswerLosses(losses, logits.detach().argmax(dim=-1) == labels[targets], rows)
        states = _states_before_head(self._model, inputs)[targets]
        losses, right = chunked_losses(states, labels[targets], self._head, self._give_way)
        return AnswerLosses(losses, right, rows)


class _BiasedHead(nn.Module):
    """BART's and Marian's: a bias that is no part of the linear layer."""

    def __init__(self, head: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self._head = head
        self._bias = bias

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self._head(states) + self._bias
        return logits


def _head_alone(model: PreTrainedModel) -> nn.Module | None:
    """What makes the logits of the head's input; None unless they are, bit for bit, the model's."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        return None
    bias = getattr(model, "final_logits_bias", None)
    alone = _BiasedHead(head, bias) if isinstance(bias, Tensor) else head
    probe = torch.arange(4, device=model.device).unsqueeze(0)  # any tokens do; every vocabulary has four
    inputs = {"input_ids": probe, "decoder_input_ids": probe}
    with torch.no_grad():
        states = _states_before_head(model, inputs)
        if states is None or not torch.equal(alone(states), model(**inputs).logits):
            return None
    return alone


def _states_before_head(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Any:
    """What the model gives its head, [rows, tokens, hidden size]; None if it never calls the head as a module.

    Models differ in what they do before it (T5 scales its states), so the model itself runs; its head sees no token.
    """
    found: list[Tensor] = []

    def keep(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found.append(arguments[0])
        return (arguments[0][:, :0],)

    head = cast("nn.Module", model.get_output_embeddings())
    handle = head.register_forward_pre_hook(keep)
    try:
        model(**inputs)
    finally:
        handle.remove()
    return found[0] if len(found) == 1 else None
