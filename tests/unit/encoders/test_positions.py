"""A model's table of positions bounds its texts, less the entries that stand for none."""

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from worker.tasks.positions import input_positions, written_positions

SIZES: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
TWO_SIDED: dict[str, Any] = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "vocab_size": 60_000,
}


@pytest.mark.parametrize(
    ("head", "config", "read", "written"),
    [
        (BertModel, BertConfig(**SIZES, intermediate_size=8, max_position_embeddings=40), 40, None),
        (
            RobertaModel,
            RobertaConfig(**SIZES, intermediate_size=8, max_position_embeddings=42, pad_token_id=1),
            40,
            None,
        ),
        (GPT2LMHeadModel, GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50, n_positions=40), 40, None),
        (
            OPTForCausalLM,
            OPTConfig(**SIZES, ffn_dim=8, max_position_embeddings=40, word_embed_proj_dim=8),
            40,
            None,
        ),
        (LlamaForCausalLM, LlamaConfig(**SIZES, intermediate_size=8, max_position_embeddings=40), None, None),
        (BartForConditionalGeneration, BartConfig(**TWO_SIDED, max_position_embeddings=40), 40, 40),
        (MarianMTModel, MarianConfig(**TWO_SIDED, max_position_embeddings=40), 40, 40),
        (T5ForConditionalGeneration, T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1), None, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_table_is_found_by_each_familys_name_for_it(
    head: Any, config: Any, read: int | None, written: int | None
) -> None:
    with torch.device("meta"):
        model = head(config)
    assert input_positions(model) == read
    assert written_positions(model) == written
