"""Rows packed into one: which go together, and that nothing of one reaches another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from tandem.errors import InvalidRequest
from tandem.specs import LoraMethod
from tests.unit.training.tiny import (
    chat,
    chatml_tokenizer,
    colour_rows,
    encode_texts,
    run_training,
    tiny_gpt2,
    tiny_llama,
)
from worker.training.borders import keeps_texts_apart
from worker.training.data import PaddedBatch
from worker.training.loss import AnswerLoss
from worker.training.packing import PackedExamples, packs
from worker.training.twin import build_twin


@given(st.lists(st.integers(1, 40), max_size=40), st.integers(8, 64))
def test_each_row_is_in_one_pack_that_holds_it(lengths: list[int], capacity: int) -> None:
    plan = packs(lengths, capacity)
    assert sorted(row for pack in plan for row in pack) == list(range(len(lengths)))
    for pack in plan:
        assert len(pack) == 1 or sum(lengths[row] for row in pack) <= capacity
    assert plan == packs(list(lengths), capacity)


def test_a_row_goes_where_it_leaves_the_least_room() -> None:
    assert packs([6, 5, 4, 3, 2], 10) == [(0, 2), (1, 3, 4)]


def tiny_qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen3Config(vocab_size=400, num_key_value_heads=2, head_dim=8, use_cache=False, **sizes)
    return Qwen3ForCausalLM(config).eval()


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_qwen])
def test_loss_and_gradients_are_those_of_the_rows_alone(build: Any) -> None:
    """In fp32 within 1e-5: rotary and learned positions, and a batch of packs of different lengths."""
    examples = encode_texts(colour_rows()[:5], chatml_tokenizer(), 200).examples
    collate = PaddedBatch(chatml_tokenizer())
    model = build()
    model.config.use_cache = False  # as a twin's
    weights = [one for name, one in model.named_parameters() if "attn" in name and one.dim() == 2]
    model.get_output_embeddings().requires_grad_(False)
    loss_of = AnswerLoss(model, lambda: None, lambda ids: {"input_ids": ids})

    def gradients(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        losses = loss_of(batch["input_ids"], batch["labels"], batch.get("position_ids")).losses
        return [losses.sum().detach(), *torch.autograd.grad(losses.sum(), weights)]

    alone = [gradients(collate([example])) for example in examples]
    packed = collate(PackedExamples(examples, [(0, 1, 2), (3, 4)])[:])
    assert packed["input_ids"].shape[0] == 2
    for found, *parts in zip(gradients(packed), *alone, strict=True):
        torch.testing.assert_close(found, torch.stack(parts).sum(dim=0), rtol=1e-5, atol=1e-5)


def test_a_packed_training_equals_one_of_whole_batches(tmp_path: Path) -> None:
    """Every step sees all rows, in packs of up to 120 tokens or one by one: the same losses and, but for rounding,
    the same adapter's loss."""
    settings: dict[str, Any] = {"rows": colour_rows(), "validation_rows": colour_rows(), "max_steps": 4}
    whole = run_training(tiny_llama(), tmp_path / "whole", batch_size=12, **settings)
    packed = run_training(tiny_llama(), tmp_path / "packed", batch_size=12, packing=True, max_tokens=120, **settings)
    assert packed.training_data == whole.training_data
    for one, other in zip(whole.history, packed.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_steps_are_counted_by_packs(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    outcome = run_training(
        tiny_llama(),
        tmp_path,
        max_steps=None,
        epochs=1.0,
        batch_size=1,
        packing=True,
        max_tokens=150,
        on_event=events.append,
    )
    assert events[0]["steps"] == events[0]["examples"] == outcome.steps
    assert outcome.steps < outcome.training_data.rows / 2
    assert outcome.tokens == outcome.training_data.tokens


def blind_to_positions() -> PreTrainedModel:
    """A causal BERT, whose attention does not look at the positions that it is given."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertLMHeadModel(BertConfig(vocab_size=400, is_decoder=True, use_cache=False, **sizes)).eval()


def test_a_model_that_mixes_texts_is_refused(tmp_path: Path) -> None:
    """Silently, it would learn answers from other rows' questions."""
    for dtype in (torch.float32, torch.bfloat16):
        assert keeps_texts_apart(build_twin(tiny_llama(dtype=dtype)))
    assert not keeps_texts_apart(blind_to_positions())
    with pytest.raises(InvalidRequest, match="lets the rows of a pack see each other") as raised:
        run_training(
            blind_to_positions(),
            tmp_path,
            rows=[chat("red", "stop")],
            method=LoraMethod(target_modules=("query",)),
            packing=True,
        )
    assert raised.value.param == "hyperparameters.packing"
