"""The language model's loss, computed in chunks of tokens, so that no turn is long."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from worker.training.virtual_tokens import ModelInputs

IGNORED_LABEL = -100
"""The label of a token that carries no loss: the value that torch's cross-entropy ignores by default."""

CHUNK_TOKENS = 48
"""Tokens whose logits exist at once. With SmolLM2's vocabulary of 49,152 they take 9 MB in fp32, and on CPU a chunk
takes about as long as a layer of the backward pass of a 512-token micro-batch, so no boundary is far from the next.
Without chunks the head and the loss were a turn of 1 s."""


def chunked_cross_entropy(
    hidden: Tensor,
    labels: Tensor,
    head: nn.Module,
    denominator: Tensor | float,
    between_chunks: Callable[[], None],
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """The sum of the tokens' cross-entropies, divided by `denominator`: an fp32 scalar.

    Equal, in value and gradient, to `F.cross_entropy(head(hidden).float(), labels, reduction="sum") / denominator`,
    with no more than `chunk_tokens` rows of logits in memory and `between_chunks()` called after each chunk.

    hidden: [tokens, hidden size]; labels: [tokens], all of them real. `head` maps hidden states to logits and must
    be frozen, since gradients go to `hidden` alone: ValueError otherwise.
    """
    if any(parameter.requires_grad for parameter in head.parameters()):
        raise ValueError("the head must be frozen: chunks of the loss give no gradient to it")
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
        hidden, labels, head, denominator, between_chunks, chunk_tokens
    )
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradient of each chunk in the forward pass, while its logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        labels: Tensor,
        head: nn.Module,
        denominator: Tensor | float,
        between_chunks: Callable[[], None],
        chunk_tokens: int,
    ) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if wants_gradient else None
        for start in range(0, len(hidden), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            with torch.set_grad_enabled(wants_gradient):
                states = hidden[chunk].detach().requires_grad_(wants_gradient)
                loss = F.cross_entropy(head(states).float(), labels[chunk], reduction="sum") / denominator
            if gradient is not None:
                (gradient[chunk],) = torch.autograd.grad(loss, states)
            total += loss.detach()
            between_chunks()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None, None


class AnswerLoss:
    """The loss of a causal language model on the answer tokens of a batch.

    Only tokens with a label meet the head. Where the logits are exactly `head(backbone(...))` they are computed in
    chunks; a model that does more to its logits (Gemma's soft cap, Cohere's scale) runs whole, in one longer turn.
    """

    def __init__(self, model: PreTrainedModel, give_way: Callable[[], None], inputs: ModelInputs) -> None:
        """Runs `model` once, on a few tokens: it must be in eval mode, and training hold the device.

        `inputs` says what its forward is given; an adapter's virtual tokens among it carry no loss.
        """
        self._model = model
        self._give_way = give_way
        self._inputs = inputs
        self._split = _split_at_head(model)

    @property
    def is_chunked(self) -> bool:
        return self._split is not None

    def __call__(self, input_ids: Tensor, labels: Tensor, denominator: Tensor | float) -> Tensor:
        """Sum of the answer tokens' cross-entropies over `denominator`: an fp32 scalar.

        input_ids, labels: [rows, tokens], padded on the right. Padding needs no attention mask: attention is
        causal, so no token sees what follows it, and padding carries no label.
        """
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
        answers, tokens = targets != IGNORED_LABEL, input_ids.shape[1]
        if self._split is None:
            logits = self._model(**self._inputs(input_ids)).logits[:, -tokens:][answers]
            return F.cross_entropy(logits.float(), targets[answers], reduction="sum") / denominator
        backbone, head = self._split
        hidden = backbone(**self._inputs(input_ids)).last_hidden_state[:, -tokens:][answers]
        return chunked_cross_entropy(hidden, targets[answers], head, denominator, self._give_way)


def _split_at_head(model: PreTrainedModel) -> tuple[nn.Module, nn.Module] | None:
    """The backbone and the head, if the model's logits are bit for bit what the two of them give."""
    backbone, head = model.base_model, model.get_output_embeddings()
    if backbone is model or not isinstance(head, nn.Module):
        return None
    probe = torch.arange(4, device=model.device).unsqueeze(0)  # any tokens do; every vocabulary has four
    with torch.no_grad():
        hidden = getattr(backbone(input_ids=probe), "last_hidden_state", None)
        if hidden is None or not torch.equal(head(hidden), model(input_ids=probe).logits):
            return None
    return backbone, head
