"""A model's tokens as the constraints' library needs them: the bytes that each adds to the text."""

from copy import copy

from llguidance import LLTokenizer
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tandem.errors import InvalidRequest

PARAM = "parameters.response_format"
PROBE = "A  b\n\tC e\u0301 " + "".join(
    map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x800, 0x3F), 0x20AC, 0x6771, 0x1F642])
)
"""Spaces in a row, upper case, an accent apart from its letter, printable ASCII and characters of two, three and four
bytes: what some tokenizers drop, change or do not know. (Many, SmolLM2's too, lack a few control characters.)"""


def constraint_tokenizer(
    tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_tokens: frozenset[int]
) -> LLTokenizer:
    """The library's view of a tokenizer, for logits of `vocabulary` tokens. Takes 0.4 s for 49,000 tokens (M).

    It can be made of tokenizers whose text is their tokens' bytes one after another: byte-level ones, and those of
    the SentencePiece kind that spell what they do not know in bytes. Raises InvalidRequest for any other, and for a
    model without an end token, whose text could not end where the format ends it.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise _unsuited(f"{type(tokenizer).__name__} has no form that the library reads")
    pieces = tokenizer.backend_tokenizer.model
    for mark in ("continuing_subword_prefix", "end_of_word_suffix"):
        # The library would take the mark, such as `##` or `</w>`, for a part of the text.
        if getattr(pieces, mark, None):
            raise _unsuited(f"its pieces carry marks ({getattr(pieces, mark)}) that are no part of the text")
    ends = sorted(token for token in end_tokens if token < len(tokenizer))
    if not ends and isinstance(tokenizer.eos_token_id, int):
        ends = [tokenizer.eos_token_id]
    if not ends:
        raise _unsuited("it has no end token, so that a text could not end where the format ends it")
    try:
        tokens = LLTokenizer(
            _exact(tokenizer.backend_tokenizer).to_str(), n_vocab=max(vocabulary, len(tokenizer)), eos_token=ends
        )
    except ValueError as error:
        raise _unsuited(str(error)) from error
    if tokens.decode_bytes(tokens.tokenize_str(PROBE)) != PROBE.encode():
        # Where only one text may follow, the library asks for its tokens, and takes for granted that they are it.
        raise _unsuited("its tokens do not give every text back as it was")
    return tokens


def _exact(backend: Tokenizer) -> Tokenizer:
    """A copy that changes no text. What may follow is exact: `é` in two characters is not `é` in one."""
    backend = copy(backend)
    backend.no_padding()
    backend.no_truncation()
    normalizer = backend.normalizer
    in_turn = isinstance(normalizer, normalizers.Sequence)
    steps = [normalizer[place] for place in range(len(normalizer))] if in_turn else [normalizer]
    # These two put `▁` for spaces, which is how the SentencePiece kind spells them.
    spelling = [step for step in steps if isinstance(step, normalizers.Prepend | normalizers.Replace)]
    backend.normalizer = normalizers.Sequence(spelling)
    return backend


def _unsuited(reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"this model's tokenizer cannot follow a `response_format`: {reason}. Leave it out, or take a model with a "
        "byte-level tokenizer or one of the SentencePiece kind with byte fallback",
        param=PARAM,
    )
