"""The language model's loss, computed in chunks of tokens, so that no turn is long."""

from collections.abc import Callable
from dataclasses import dataclass
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


def chunked_losses(
    hidden: Tensor,
    labels: Tensor,
    head: nn.Module,
    between_chunks: Callable[[], None],
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Each token's cross-entropy, in fp32, and whether its label is the most probable token; both [tokens].

    Equal, in value and gradient, to `F.cross_entropy(head(hidden).float(), labels, reduction="none")`, with no more
    than `chunk_tokens` rows of logits in memory. `between_chunks()` is called after each chunk, and within it after
    the head's forward pass and before its backward pass.

    hidden: [tokens, hidden size]; labels: [tokens], all of them real. `head` maps hidden states to logits and must
    be frozen, since gradients go to `hidden` alone: ValueError otherwise.
    """
    if any(parameter.requires_grad for parameter in head.parameters()):
        raise ValueError("the head must be frozen: chunks of the loss give no gradient to it")
    results: tuple[Tensor, Tensor] = _ChunkedLosses.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        hidden, labels, head, between_chunks, chunk_tokens
    )
    return results


class _ChunkedLosses(torch.autograd.Function):
    """Computes the gradient of each chunk in the forward pass, while its logits exist.

    A token's loss depends on its own hidden state alone, so the gradient of the sum holds that of each of them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        labels: Tensor,
        head: nn.Module,
        between_chunks: Callable[[], None],
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        wants_gradient = ctx.needs_input_grad[0]
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        right = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        gradient = torch.empty_like(hidden) if wants_gradient else None
        for start in range(0, len(hidden), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            with torch.set_grad_enabled(wants_gradient):
                states = hidden[chunk].detach().requires_grad_(wants_gradient)
                logits = head(states).float()
                if gradient is not None:
                    logits.register_hook(lambda _gradient: between_chunks())  # between the loss's part and the head's
                between_chunks()
                chunk_losses = F.cross_entropy(logits, labels[chunk], reduction="none")
                total = chunk_losses.sum()
            if gradient is not None:
                (gradient[chunk],) = torch.autograd.grad(total, states)
            losses[chunk] = chunk_losses.detach()
            right[chunk] = logits.detach().argmax(dim=-1) == labels[chunk]
            between_chunks()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return losses, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _right: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype).unsqueeze(1), None, None, None, None


@dataclass(frozen=True, slots=True)
class AnswerLosses:
    """The answer tokens of a batch, row after row."""

    losses: Tensor
    """Their cross-entropies in fp32, [answer tokens]."""
    right: Tensor
    """Whether each is the most probable token there; likewise."""
    rows: Tensor
    """The row of the batch that each is in; likewise."""


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

    def __call__(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None) -> AnswerLosses:
        """The losses of the tokens that have a label.

        input_ids, labels: [rows, tokens], padded on the right. Padding needs no attention mask: attention is
        causal, so no token sees what follows it, and padding carries no label. position_ids: where a row holds
        several texts, each token's place in its own; transformers keeps their attention apart by them.
        """
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
        answers, tokens = targets != IGNORED_LABEL, input_ids.shape[1]
        places = {} if position_ids is None else {"position_ids": position_ids}
        rows = answers.nonzero()[:, 0]
        if self._split is None:
            logits = self._model(**self._inputs(input_ids), **places).logits[:, -tokens:][answers].float()
            losses = F.cross_entropy(logits, targets[answers], reduction="none")
            return AnswerLosses(losses, logits.detach().argmax(dim=-1) == targets[answers], rows)
        backbone, head = self._split
        hidden = backbone(**self._inputs(input_ids), **places).last_hidden_state[:, -tokens:][answers]
        losses, right = chunked_losses(hidden, targets[answers], head, self._give_way)
        return AnswerLosses(losses, right, rows)


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
