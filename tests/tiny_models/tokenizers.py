"""Tokenizers built in code from a few sentences: every word of them is one piece, every other word is spelt out.

Pieces are listed, not trained: the trainers of the `tokenizers` library order pieces by chance, and a model's weights
must mean the same piece in every process.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertTokenizer,
    CLIPTokenizer,
    MBart50Tokenizer,
    PreTrainedTokenizerFast,
    T5Tokenizer,
    TapasTokenizer,
    VitsTokenizer,
    Wav2Vec2CTCTokenizer,
    WhisperTokenizer,
)

from tests.tiny_models.samples import SENTENCES

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MARKS = ".,:?!'$%-#0123456789"
WORDS = sorted(
    {word.strip(MARKS) for sentence in SENTENCES for word in (sentence + " " + sentence.lower()).split()}
    - {"", *LETTERS},
    key=lambda word: (-len(word), word),
)
"""Every word as written and in lower case, the longest first: a merge of a short word must not break a longer one."""
MAX_TOKENS = 128
"""Positions of every tiny text model: twice the longest sample document, so that truncation can be tested too."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A conversation between marks; an image or an audio part becomes the placeholder that its processor expands."""


def word_pieces(*, lower_case: bool = True) -> BertTokenizer:
    """BERT's tokenizer: `[CLS] text [SEP]`, continuations spelt with `##`."""
    return BertTokenizer(vocab=_word_piece_vocabulary(), do_lower_case=lower_case, model_max_length=MAX_TOKENS)


def tapas_pieces(folder: Path) -> TapasTokenizer:
    """TAPAS's tokenizer, which reads its pieces from a file: the file is left in `folder`."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(_word_piece_vocabulary(extra=["[EMPTY]"])) + "\n", encoding="utf-8")
    return TapasTokenizer(vocab_file=str(path), model_max_length=MAX_TOKENS)


def byte_pairs(*, bos: str, eos: str, pad: str, extra: Iterable[str] = (), **options: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as Llama 3, Qwen and GPT-2 have it; nothing is added around a text.

    `extra` are special tokens beside the three; `options` go to the tokenizer (a chat template, a padding side).
    """
    specials = list(dict.fromkeys([bos, eos, pad, *extra]))
    vocabulary, merges = byte_pair_table(specials)
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=eos,
        extra_special_tokens=[token for token in extra if token not in (bos, eos, pad)],
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
        **options,
    )


def bart_pieces(extra: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE with BART's marks, which CLAP and Donut share: `<s> text </s>`."""
    tokenizer = byte_pairs(bos="<s>", eos="</s>", pad="<pad>", extra=["<unk>", "<mask>", *extra])
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", tokenizer.eos_token_id), ("<s>", tokenizer.bos_token_id)
    )
    tokenizer.add_special_tokens(
        {"mask_token": "<mask>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    )
    return tokenizer


def clip_pieces(*, pad: str = "<|endoftext|>", length: int = 16) -> CLIPTokenizer:
    """CLIP's tokenizer (a word's last letter carries `</w>`), for texts of up to `length` tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        letters = [*word[:-1], word[-1] + "</w>"]
        merges |= dict.fromkeys(_chain(letters))
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    pieces = list(dict.fromkeys([*pieces, pad, "<|startoftext|>", "<|endoftext|>"]))
    # CLIP finds a text's end as its largest id, so the end mark must be the last piece.
    pieces.remove("<|endoftext|>")
    pieces.append("<|endoftext|>")
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    pairs: Any = list(merges)  # the library takes pairs, though it annotates strings
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad, model_max_length=length)


def t5_pieces() -> T5Tokenizer:
    """T5's unigram tokenizer: `text </s>`, with two sentinels."""
    pieces = _unigrams(["<pad>", "</s>", "<unk>"])
    return T5Tokenizer(vocab=pieces, extra_ids=2, model_max_length=MAX_TOKENS)


def multilingual_pieces() -> MBart50Tokenizer:
    """mBART-50's unigram tokenizer: a language code, the text, `</s>`. It knows all 52 codes of the real one."""
    pieces = _unigrams(["<s>", "<pad>", "</s>", "<unk>"])
    return MBart50Tokenizer(vocab=pieces, src_lang="en_XX", tgt_lang="fr_XX", model_max_length=MAX_TOKENS)


def letters_for_ctc(folder: Path) -> Wav2Vec2CTCTokenizer:
    """One piece a letter, `|` between words; its vocabulary file is left in `folder`."""
    path = folder / "vocab.json"
    pieces = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS.upper(), "'"]
    path.write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}), encoding="utf-8")
    return Wav2Vec2CTCTokenizer(str(path))


def letters_for_speech(folder: Path) -> VitsTokenizer:
    """VITS's tokenizer: one piece a letter, with a blank between two; its vocabulary file is left in `folder`."""
    path = folder / "vocab.json"
    pieces = ["_", *LETTERS, " ", "'", "-", "<unk>"]
    path.write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}), encoding="utf-8")
    return VitsTokenizer(str(path), pad_token="_", phonemize=False)


def whisper_pieces(*, seconds: int) -> WhisperTokenizer:
    """Whisper's tokenizer with the time marks of `seconds`, one every 20 ms, after all other pieces."""
    marks = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|en|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]
    vocabulary, merges = byte_pair_table([])
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges, pad_token="<|endoftext|>", model_max_length=32)
    times = [f"<|{index * 0.02:.2f}|>" for index in range(seconds * 50 + 1)]
    tokenizer.add_special_tokens({"extra_special_tokens": marks[1:]})
    tokenizer.add_tokens(times)
    return tokenizer


def byte_pair_table(specials: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE: 256 bytes, then each word grown from the left, then the specials.

    A word after a space (`Ġword`) comes before the word alone, so that no merge of the second breaks the first.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in [*(f"Ġ{word}" for word in WORDS), *WORDS]:
        merges |= dict.fromkeys(_chain(list(word)))
    pieces = dict.fromkeys([*specials, *alphabet, *("".join(pair) for pair in merges)])
    return {piece: index for index, piece in enumerate(pieces)}, list(merges)


def _chain(letters: list[str]) -> list[tuple[str, str]]:
    """The merges that grow one word letter by letter: c+a, ca+t."""
    return [("".join(letters[:end]), letters[end]) for end in range(1, len(letters))]


def _word_piece_vocabulary(extra: Iterable[str] = ()) -> dict[str, int]:
    singles = [*LETTERS, *LETTERS.upper(), *MARKS]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *extra]
    pieces = [*specials, *singles, *(f"##{single}" for single in singles), *WORDS]
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}


def _unigrams(specials: list[str]) -> list[tuple[str, float]]:
    """Words score above any spelling of theirs; ties are broken by a small slope."""
    words = [(f"▁{word}", -3.0 - 0.001 * index) for index, word in enumerate(WORDS)]
    letters = [
        (letter, -10.0 - 0.001 * index) for index, letter in enumerate([*LETTERS, *LETTERS.upper(), *MARKS, "▁"])
    ]
    return [*((special, 0.0) for special in specials), *words, *letters]
