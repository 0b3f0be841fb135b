"""Tiny models of text: encoders with every head, a decoder, and encoder-decoders."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    TapasConfig,
    TapasForQuestionAnswering,
)

from tests.tiny_models.entry import Parts, TinyModel, labels
from tests.tiny_models.tokenizers import (
    CHATML,
    MAX_TOKENS,
    bart_pieces,
    byte_pairs,
    multilingual_pieces,
    t5_pieces,
    tapas_pieces,
    word_pieces,
)

WIDTH = 32
ENCODER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ENCODER_DECODER: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": MAX_TOKENS,
    # Tied, a random decoder repeats its last token for ever.
    "tie_word_embeddings": False,
}
ENTITIES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
NEW_TOKENS = 12
"""What a generating model writes unless asked otherwise: enough to compare, quick to make."""


def greedy(model: Any, tokenizer: Any, **options: Any) -> None:
    """Gives a generating model its saved defaults: greedy, `NEW_TOKENS` tokens, the tokenizer's marks."""
    model.generation_config = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def _bert(head: Any, _folder: Path, **config: Any) -> Parts:
    tokenizer = word_pieces()
    settings = BertConfig(**ENCODER, vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS, **config)
    return Parts(head(settings), [tokenizer])


def sure_of_spans(parts: Parts) -> None:
    """Sharpens a head that picks an answer's start and end, whose best spans would else share the score."""
    with torch.no_grad():
        parts.model.qa_outputs.weight.mul_(4)


def _tapas(folder: Path) -> Parts:
    tokenizer = tapas_pieces(folder)
    config = TapasConfig(
        **ENCODER,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        num_aggregation_labels=4,
        aggregation_labels={0: "NONE", 1: "SUM", 2: "AVERAGE", 3: "COUNT"},
    )
    return Parts(TapasForQuestionAnswering(config), [tokenizer])


def _finds_cells(parts: Parts) -> None:
    """Makes TAPAS choose cells for most questions."""
    with torch.no_grad():
        parts.model.output_bias.fill_(2.0)


def _llama(_folder: Path) -> Parts:
    tokenizer = byte_pairs(
        bos="<|im_start|>", eos="<|im_end|>", pad="<pad>", chat_template=CHATML, padding_side="left"
    )
    config = LlamaConfig(
        **ENCODER,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    greedy(model, tokenizer)
    return Parts(model, [tokenizer])


def _t5(_folder: Path) -> Parts:
    tokenizer = t5_pieces()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        "task_specific_params": {
            "summarization": {"prefix": "summarize: ", "max_length": 10},
            "translation_en_to_fr": {"prefix": "translate English to French: ", "max_length": 10},
        },
    }
    model = T5ForConditionalGeneration(T5Config(**settings))
    # A small T5 falls into one word for ever; real summarizers forbid repeated pairs or triples for the same reason.
    greedy(model, tokenizer, decoder_start_token_id=tokenizer.pad_token_id, no_repeat_ngram_size=2)
    return Parts(model, [tokenizer])


def _soft_attention(parts: Parts) -> None:
    """Divides T5's queries by the root of a head's size, which its code leaves to the weights."""
    with torch.no_grad():
        for name, weight in parts.model.named_parameters():
            if name.endswith(".q.weight"):
                weight.div_(parts.model.config.d_kv**0.5)


def _bart(_folder: Path) -> Parts:
    tokenizer = bart_pieces()
    config = BartConfig(
        **ENCODER_DECODER,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    model = BartForConditionalGeneration(config)
    greedy(model, tokenizer, decoder_start_token_id=tokenizer.eos_token_id)
    return Parts(model, [tokenizer])


def _marian(_folder: Path) -> Parts:
    # Marian's own tokenizer needs sentencepiece; T5's makes the same `pieces </s>`.
    tokenizer = t5_pieces()
    config = MarianConfig(
        **ENCODER_DECODER,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    model = MarianMTModel(config)
    # As on the Hub: the padding token starts the decoder and is never written.
    greedy(model, tokenizer, decoder_start_token_id=tokenizer.pad_token_id, bad_words_ids=[[tokenizer.pad_token_id]])
    return Parts(model, [tokenizer])


def _mbart(_folder: Path) -> Parts:
    tokenizer = multilingual_pieces()
    config = MBartConfig(
        **ENCODER_DECODER,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    model = MBartForConditionalGeneration(config)
    greedy(model, tokenizer, decoder_start_token_id=tokenizer.eos_token_id)
    return Parts(model, [tokenizer])


TEXT = {
    "tiny-bert": TinyModel(("feature-extraction",), partial(_bert, BertModel)),
    "tiny-bert-masked": TinyModel(("fill-mask",), partial(_bert, BertForMaskedLM, tie_word_embeddings=False)),
    "tiny-bert-sentiment": TinyModel(
        ("text-classification",),
        partial(_bert, BertForSequenceClassification, **labels("negative", "neutral", "positive")),
    ),
    "tiny-bert-entities": TinyModel(
        ("token-classification",), partial(_bert, BertForTokenClassification, **labels(*ENTITIES))
    ),
    "tiny-bert-nli": TinyModel(
        ("zero-shot-classification",),
        partial(_bert, BertForSequenceClassification, **labels("contradiction", "neutral", "entailment")),
    ),
    "tiny-bert-answers": TinyModel(("question-answering",), partial(_bert, BertForQuestionAnswering), sure_of_spans),
    "tiny-tapas": TinyModel(("table-question-answering",), _tapas, _finds_cells),
    "tiny-llama": TinyModel(("text-generation", "decision"), _llama),
    "tiny-t5": TinyModel(("text2text-generation", "summarization", "translation"), _t5, _soft_attention),
    "tiny-bart": TinyModel(("text2text-generation", "summarization"), _bart),
    "tiny-marian": TinyModel(("translation",), _marian),
    "tiny-mbart": TinyModel(("translation",), _mbart),
}
