"""Tokens to text, piece by piece, with a real byte-level tokenizer: a character may span several tokens."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.unit.engine.tiny_models import VOCABULARY
from worker.engine.text.detokenizer import REPLACEMENT, Detokenizer


def pieces(tokenizer: PreTrainedTokenizerFast, prompt: list[int], tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [detokenizer.push(token) for token in tokens] + [detokenizer.flush()]


def test_half_a_character_is_never_shown(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.encode("a🙈b")
    assert len(tokens) == 4, "the emoji's four bytes were expected to span two tokens"

    shown = pieces(tokenizer, [], tokens)

    assert "".join(shown) == "a🙈b"
    assert not any(REPLACEMENT in piece for piece in shown)


def test_bytes_that_never_become_a_character_are_replaced_at_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.encode("ok🙈")[:-1]

    assert "".join(pieces(tokenizer, [], tokens)) == "ok" + REPLACEMENT


def test_special_tokens_are_not_text(tokenizer: PreTrainedTokenizerFast) -> None:
    end = tokenizer.convert_tokens_to_ids("<end>")

    assert "".join(pieces(tokenizer, [], [*tokenizer.encode("a b"), end, *tokenizer.encode(" c")])) == "a b c"


def test_the_space_before_the_first_word_is_kept() -> None:
    """A SentencePiece-style decoder drops the space that begins a text; the answer does not begin it."""
    words = ["<unk>", "▁Hello", "▁world", "!"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")

    assert wrapped.decode([2, 3]) == "world!"
    assert pieces(wrapped, [1], [2, 3]) == [" world", "!", ""]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_the_pieces_of_any_text_make_up_the_text(tokenizer: PreTrainedTokenizerFast, prompt: str, text: str) -> None:
    shown = pieces(tokenizer, tokenizer.encode(prompt), tokenizer.encode(text))

    assert "".join(shown) == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(1, VOCABULARY - 1), max_size=40))
def test_the_pieces_of_any_tokens_make_up_their_decoding(
    tokenizer: PreTrainedTokenizerFast, tokens: list[int]
) -> None:
    """A random model emits bytes that are no UTF-8; nothing is lost or shown twice."""
    tokens = [token % len(tokenizer) for token in tokens]

    assert "".join(pieces(tokenizer, [], tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)
