"""The chunked loss against the plain one."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from peft import PeftConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from tests.unit.training.tiny import tiny_gpt2, tiny_llama
from worker.training.loss import AnswerLoss, chunked_losses
from worker.training.virtual_tokens import inputs_of


def frozen_head(hidden_size: int = 16, vocabulary: int = 50) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(hidden_size, vocabulary, bias=False).requires_grad_(False)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 30, 31, 1000])
def test_chunks_give_the_plain_value_and_gradient(chunk_tokens: int) -> None:
    """Whatever the chunk's size, also where it does not divide the tokens, and under an outer factor."""
    head, tokens = frozen_head(), 31
    hidden = torch.randn(tokens, 16, requires_grad=True)
    labels = torch.randint(0, 50, (tokens,))
    plain = F.cross_entropy(head(hidden), labels, reduction="sum") / 12
    (expected,) = torch.autograd.grad(plain * 3, hidden)

    chunks: list[None] = []
    losses, right = chunked_losses(hidden, labels, head, lambda: chunks.append(None), chunk_tokens)
    loss = losses.sum() / 12
    (gradient,) = torch.autograd.grad(loss * 3, hidden)
    torch.testing.assert_close(loss, plain)
    assert torch.equal(right, head(hidden).argmax(dim=-1) == labels)
    torch.testing.assert_close(gradient, expected)
    assert len(chunks) == 3 * -(-tokens // chunk_tokens), "after the head, before its backward pass, and at the end"


def test_each_token_has_a_gradient_of_its_own() -> None:
    """Losses that weigh differently, as those of a preferred answer and the other do."""
    head, hidden, labels = frozen_head(), torch.randn(9, 16, requires_grad=True), torch.arange(9)
    weights = torch.linspace(-1, 1, 9)
    (expected,) = torch.autograd.grad(
        (F.cross_entropy(head(hidden), labels, reduction="none") * weights).sum(), hidden
    )
    losses, _ = chunked_losses(hidden, labels, head, lambda: None, 4)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), hidden)
    torch.testing.assert_close(gradient, expected)


def test_evaluation_needs_no_gradient() -> None:
    head, hidden, labels = frozen_head(), torch.randn(9, 16), torch.arange(9)
    with torch.no_grad():
        losses, _ = chunked_losses(hidden, labels, head, lambda: None, 4)
        torch.testing.assert_close(losses, F.cross_entropy(head(hidden), labels, reduction="none"))


def test_a_head_that_is_trained_is_refused() -> None:
    """It would get no gradient, silently."""
    with pytest.raises(ValueError, match="must be frozen"):
        chunked_losses(torch.randn(2, 16), torch.arange(2), nn.Linear(16, 50), lambda: None)


def plain_inputs(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a model without virtual tokens."""
    return {"input_ids": ids}


def some_batch() -> tuple[torch.Tensor, torch.Tensor, float]:
    """Ids and labels [3, 60] with the number of answer tokens: two chunks of them, in rows of uneven shares."""
    torch.manual_seed(1)
    ids = torch.randint(5, 400, (3, 60))
    labels = torch.where(torch.rand(ids.shape) < torch.tensor([[0.9], [0.6], [0.3]]), ids, -100)
    return ids, labels, float((labels[:, 1:] != -100).sum())


def capped_gemma() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Gemma2Config(
        vocab_size=400, intermediate_size=64, head_dim=8, final_logit_softcapping=2.0, use_cache=False, **sizes
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize(("build", "is_chunked"), [(tiny_llama, True), (tiny_gpt2, True), (capped_gemma, False)])
def test_the_loss_is_the_models_own(build: Callable[[], PreTrainedModel], is_chunked: bool) -> None:
    """Equal to transformers' own loss, with labels on some tokens only, also where the logits are capped after the
    head; a boundary after each chunk, if it can be chunked."""
    model = build().requires_grad_(False)
    ids, labels, count = some_batch()
    boundaries: list[None] = []
    loss_of = AnswerLoss(model, lambda: boundaries.append(None), plain_inputs)
    assert loss_of.is_chunked is is_chunked
    losses = loss_of(ids, labels).losses
    torch.testing.assert_close(losses.sum() / count, model(input_ids=ids, labels=labels).loss)
    assert bool(boundaries) is is_chunked


@pytest.mark.parametrize("build", [lambda: tiny_llama(tied=False), capped_gemma])
def test_the_gradient_is_the_models_own(build: Callable[[], PreTrainedModel]) -> None:
    """Through the frozen head and the backbone, down to a weight of the first layer."""
    model = build()
    model.get_output_embeddings().requires_grad_(False)
    weight = model.base_model.layers[0].self_attn.q_proj.weight
    ids, labels, count = some_batch()
    (expected,) = torch.autograd.grad(model(input_ids=ids, labels=labels).loss, weight)
    losses = AnswerLoss(model, lambda: None, plain_inputs)(ids, labels).losses
    (gradient,) = torch.autograd.grad(losses.sum() / count, weight)
    torch.testing.assert_close(gradient, expected)


# PEFT 0.21 reads a property that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, capped_gemma])
@pytest.mark.parametrize("config", [PrefixTuningConfig, PromptTuningConfig])
def test_virtual_tokens_carry_no_loss_and_get_its_gradient(
    config: type[PeftConfig], build: Callable[[], PreTrainedModel]
) -> None:
    """Value and gradient are those of PEFT's own forward, in chunks and whole; PEFT is told what is padding."""
    model = get_peft_model(build(), config(num_virtual_tokens=4, task_type="CAUSAL_LM")).eval()
    weight = model.prompt_encoder["default"].embedding.weight
    ids, labels, count = some_batch()
    ids, labels = ids[:, :50], labels[:, :50].clone()
    labels[:, 0], labels[2, 40:] = -100, -100
    count = float((labels != -100).sum())
    mask = torch.ones_like(ids)
    mask[2, 40:] = 0
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    answers = AnswerLoss(model.get_base_model(), lambda: None, inputs_of(model))(ids, labels)
    loss = answers.losses.sum() / count
    assert torch.equal(answers.rows, (labels[:, 1:] != -100).nonzero()[:, 0])
    torch.testing.assert_close(loss, expected)
    (expected_gradient,) = torch.autograd.grad(expected, weight)
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert gradient.abs().sum() > 0
