"""Text that comes in pieces is the text: for each kind of tokenizer, any tokens, and stop strings anywhere."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tandem.settings import Settings
from worker.engine.text.detokenizer import REPLACEMENT, Detokenizer
from worker.engine.text.stop_strings import StopStrings
from worker.engine.text.text_output import TextOutput

SMOLLM2_TOKENS = 49_152
TEXTS = [
    "👩‍👩‍👧‍👦",  # four people, joined into one character by U+200D
    "🇨🇭🇯🇵",  # two letters make one flag
    "e\u0301a\u0308",  # letters with accents of their own
    "한국어 각",
    "नमस्ते",
    "Zürich, 東京 и Москва",
    "tabs\tand\n\n  spaces   ",
]
"""What a reader takes for one character may be many, and each of these many bytes."""


def smollm2() -> PreTrainedTokenizerBase:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen have it."""
    return AutoTokenizer.from_pretrained(Settings().models_dir / "smollm2-135m-instruct")


def sentence_pieces() -> PreTrainedTokenizerFast:
    """As Llama 2, Mistral and Gemma have it: a mark for a space, dropped before a text, and bytes for the unknown."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdeinorst", "an", "▁an"]
    bpe = Tokenizer(
        models.BPE(
            vocab={piece: place for place, piece in enumerate(pieces)},
            merges=[("a", "n"), ("▁", "an")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")


@pytest.fixture(scope="module", params=[smollm2, sentence_pieces], ids=["byte_level", "sentence_pieces"])
def each_kind(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.param()


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerBase:
    return smollm2()


def whole(tokenizer: PreTrainedTokenizerBase, prompt: list[int], tokens: list[int]) -> str:
    """What the library makes of all tokens at once, after the prompt's text."""
    both, before = (
        tokenizer.decode(each, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for each in (prompt + tokens, prompt)
    )
    return both[len(before) :]


def streamed(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    tokens: list[int],
    *,
    stop: tuple[str, ...] = (),
    min_tokens: int = 0,
) -> tuple[list[str], bool]:
    """The pieces that a listener is told, and whether a stop string ended them."""
    pieces: list[str] = []
    output = TextOutput(Detokenizer(tokenizer, prompt), StopStrings(stop), pieces.append, min_tokens=min_tokens)
    stopped = any(output.push(token) for token in tokens) or output.flush()
    assert output.text == "".join(pieces)
    return pieces, stopped


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_breaks_a_character(each_kind: PreTrainedTokenizerBase, text: str) -> None:
    prompt, tokens = each_kind.encode("an"), each_kind.encode(text)
    pieces, _ = streamed(each_kind, prompt, tokens)

    assert "".join(pieces) == whole(each_kind, prompt, tokens)
    assert "".join(pieces).strip(" ") == text.strip(" ")
    assert REPLACEMENT not in "".join(pieces)


def test_a_space_before_the_first_word_is_kept(each_kind: PreTrainedTokenizerBase) -> None:
    """A SentencePiece decoder drops the space before a text's first word; a generated text does not begin there."""
    prompt = each_kind.encode("an")
    tokens = each_kind.encode("an ant rests")[1:]

    assert streamed(each_kind, prompt, tokens)[0][0].startswith(" ")
    assert "".join(streamed(each_kind, prompt, tokens)[0]) == " ant rests"


@settings(max_examples=200, deadline=None)  # a busy machine is no failure
@given(tokens=st.lists(st.integers(0, SMOLLM2_TOKENS - 1), max_size=30), prompt=st.text(max_size=12))
def test_the_pieces_of_any_tokens_of_smollm2_make_up_their_text(
    byte_level: PreTrainedTokenizerBase, tokens: list[int], prompt: str
) -> None:
    """Random tokens are full of bytes that make no character: none is lost, and none told twice."""
    before = byte_level.encode(prompt)

    assert "".join(streamed(byte_level, before, tokens)[0]) == whole(byte_level, before, tokens)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=20))
def test_the_pieces_of_any_text_make_up_the_text(each_kind: PreTrainedTokenizerBase, text: str) -> None:
    prompt = each_kind.encode("an")
    tokens = each_kind.encode(text)

    assert "".join(streamed(each_kind, prompt, tokens)[0]) == whole(each_kind, prompt, tokens)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), tokens=st.lists(st.integers(0, SMOLLM2_TOKENS - 1), min_size=1, max_size=20))
def test_a_stop_string_is_found_wherever_the_tokens_borders_lie(
    byte_level: PreTrainedTokenizerBase, data: st.DataObject, tokens: list[int]
) -> None:
    text = whole(byte_level, [], tokens)
    assume(text)  # special tokens alone have no text to cut from
    start = data.draw(st.integers(0, len(text) - 1))
    stop = text[start : start + data.draw(st.integers(1, 12))]
    pieces, stopped = streamed(byte_level, [], tokens, stop=(stop,))

    assert stopped
    assert "".join(pieces) == text[: text.index(stop)]


def test_stop_strings_count_only_after_the_first_tokens(byte_level: PreTrainedTokenizerBase) -> None:
    """`min_new_tokens` holds for stop strings too."""
    tokens = byte_level.encode("stop one stop two stop")

    assert len(tokens) == 5
    assert streamed(byte_level, [], tokens, stop=("stop",)) == ([], True)
    pieces, stopped = streamed(byte_level, [], tokens, stop=("stop",), min_tokens=1)
    assert ("".join(pieces), stopped) == ("stop one ", True)
    pieces, stopped = streamed(byte_level, [], tokens, stop=("stop",), min_tokens=5)
    assert ("".join(pieces), stopped) == ("stop one stop two stop", False)
