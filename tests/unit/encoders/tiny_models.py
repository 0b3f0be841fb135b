"""Tiny random encoders of three architectures, each with a tokenizer made here from a few sentences."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    DistilBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from worker.tasks import MODEL_CLASSES

SENTENCES = (
    "the cat sat on the mat",
    "a dog barked at the cat",
    "rain fell on the old town all night",
    "she reads a long book about the sea and the ships that cross it every year",
    "who won the match",
    "yes",
    "the sea was calm and the night was long, so the old man slept",
    "a book",
)
ARCHITECTURES = ("bert", "distilbert", "roberta")
MAX_TOKENS = 40
"""Tokens in the longest text of every tiny model."""
LABELS = {0: "sad", 1: "glad", 2: "calm"}


def _word_pieces() -> Tokenizer:
    """Whole words and single letters of the sentences. (The library's trainer orders its pieces by chance.)"""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted(set("".join(SENTENCES)) - {" "})
    words = sorted({word.strip(",") for sentence in SENTENCES for word in sentence.split()} - set(letters))
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def _byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=340, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def tiny_tokenizer(architecture: str) -> Any:
    """A tokenizer that makes the inputs the architecture takes."""
    if architecture == "roberta":
        return PreTrainedTokenizerFast(
            tokenizer_object=_byte_pairs(),
            bos_token="<s>",
            eos_token="</s>",
            cls_token="<s>",
            sep_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
            mask_token="<mask>",
            model_input_names=["input_ids", "attention_mask"],
        )
    kinds = ["token_type_ids"] if architecture == "bert" else []
    return PreTrainedTokenizerFast(
        tokenizer_object=_word_pieces(),
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask", *kinds],
    )


def tiny_model(architecture: str, task: str) -> tuple[Any, Any]:
    """A random float32 model of 2 layers with the task's head, and its tokenizer.

    Weights are spread ten times wider than usual, so that different texts get clearly different outputs.
    """
    tokenizer = tiny_tokenizer(architecture)
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "id2label": LABELS,
        "label2id": {label: index for index, label in LABELS.items()},
    }
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config: Any
    if architecture == "bert":
        config = BertConfig(**shared, **sizes, max_position_embeddings=MAX_TOKENS)
    elif architecture == "distilbert":
        config = DistilBertConfig(
            **shared, dim=32, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=MAX_TOKENS
        )
    else:  # positions start after the padding id
        config = RobertaConfig(**shared, **sizes, max_position_embeddings=MAX_TOKENS + tokenizer.pad_token_id + 1)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = MODEL_CLASSES[task].from_config(config)
    return model.eval(), tokenizer


def texts_for(task: str, tokenizer: Any) -> list[str]:
    """The sentences; for fill-mask, each with its middle word masked."""
    if task != "fill-mask":
        return list(SENTENCES)
    masked = []
    for sentence in SENTENCES:
        words = sentence.split()
        words[len(words) // 2] = tokenizer.mask_token
        masked.append(" ".join(words))
    return masked
