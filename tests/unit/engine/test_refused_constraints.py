"""Formats that cannot be followed are refused by field and reason, before the sequence begins; none is weakened."""

import json
import unicodedata
from typing import Any

import pytest
from pydantic import TypeAdapter
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tandem.errors import InvalidRequest
from tandem.specs.response_format import ResponseFormat
from tests.tiny_models import tokenizers
from tests.unit.engine.constrained_text import write
from worker.engine.tokens.constraints import ConstraintCompiler

FORMATS: TypeAdapter[ResponseFormat] = TypeAdapter(ResponseFormat)
SCHEMA = "parameters.response_format.json_schema.schema"


@pytest.fixture(scope="module")
def compiler(tokenizer: PreTrainedTokenizerFast) -> ConstraintCompiler:
    return ConstraintCompiler(tokenizer, len(tokenizer), frozenset({tokenizer.eos_token_id}))


def refusal(compiler: ConstraintCompiler, response_format: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        compiler.compile(FORMATS.validate_python(response_format))
    return refused.value


def for_schema(schema: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": {"const": 1}}, "contains"),
    ({"not": {"type": "string"}}, "not"),
    ({"if": {"type": "string"}, "then": {"maxLength": 1}}, "then"),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "string", "format": "credit-card"}, "credit-card"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
]


@pytest.mark.parametrize(("schema", "named"), UNSUPPORTED)
def test_what_a_schema_cannot_be_held_to_is_refused_by_name(
    compiler: ConstraintCompiler, schema: dict[str, Any], named: str
) -> None:
    error = refusal(compiler, for_schema({"type": "object", "properties": {"a": schema}}))

    assert error.param == SCHEMA
    assert named in error.message
    assert "set `strict` to false" in error.message


@pytest.mark.parametrize(("schema", "named"), UNSUPPORTED)
def test_what_is_not_strict_is_held_to_the_rest(
    compiler: ConstraintCompiler, schema: dict[str, Any], named: str
) -> None:
    assert compiler.compile(FORMATS.validate_python(for_schema(schema, strict=False))) is not None


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "Unsatisfiable"),
        ({"$ref": "https://example.org/schema.json"}, "not present in a registry"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "unsupported key `x-guidance`"),
        # Each of six parts has ten alternatives: a million combinations.
        ({"allOf": [{"anyOf": [{"properties": {f"a{n}": {"type": "null"}}} for n in range(10)]}] * 6}, "too large"),
    ],
)
def test_a_faulty_or_too_large_schema_is_refused_with_the_reason(
    compiler: ConstraintCompiler, schema: dict[str, Any], reason: str
) -> None:
    error = refusal(compiler, for_schema(schema))

    assert error.param == SCHEMA
    assert reason in error.message


def test_a_schema_of_too_many_choices_fails_the_sequence_that_comes_to_them(
    compiler: ConstraintCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Any of 400 properties may be the next, which costs more than one sequence's token may."""
    schema = {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(400)}}
    constraint = compiler.compile(FORMATS.validate_python(for_schema(schema)))
    assert constraint is not None

    with pytest.raises(InvalidRequest, match=r"(?s)max is 500.*make more properties required") as failed:
        write(constraint, tokenizer, seed=0)

    assert failed.value.param == SCHEMA


@pytest.mark.parametrize(
    ("response_format", "reason"),
    [
        ({"type": "regex", "regex": "(a"}, "unclosed group"),
        ({"type": "regex", "regex": r"(a)\1"}, "backreferences are not supported"),
        ({"type": "regex", "regex": r"\bfoo"}, "lookarounds not supported"),
        ({"type": "grammar", "grammar": 'begin: "a"'}, "no start rule"),
        ({"type": "grammar", "grammar": "start: missing"}, 'unknown name: "missing"'),
        ({"type": "grammar", "grammar": 'root ::= "a"'}, "1(7)"),
        ({"type": "grammar", "grammar": '{"grammars": [{"json_schema": {}}]}'}, "1(1)"),
        ({"type": "grammar", "grammar": "start: A\nA: /a/ & /b/"}, "no token can come next"),
    ],
)
def test_a_faulty_expression_is_refused_with_the_place(
    compiler: ConstraintCompiler, response_format: dict[str, Any], reason: str
) -> None:
    error = refusal(compiler, response_format)

    assert error.param == f"parameters.response_format.{response_format['type']}"
    assert reason in error.message
    assert len(error.message) < 800


def sentence_pieces(*, bytes_known: bool = True) -> LlamaTokenizer:
    """Llama's kind: words with `▁` for the space before them; what is not listed is spelt in bytes, if those are."""
    single = [f"<0x{byte:02X}>" for byte in range(256)] if bytes_known else []
    pieces = ["<unk>", "<s>", "</s>", *single, "▁", *'abcdefghijklmnopqrstuvwxyz":', "▁a", "an", "▁an"]
    return LlamaTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[("▁", "a"), ("a", "n"), ("▁a", "n")]
    )


@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece"])
def test_tokenizers_of_both_kinds_write_what_the_format_says(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    used: PreTrainedTokenizerFast = tokenizer if kind == "byte-level" else sentence_pieces()
    compiler = ConstraintCompiler(used, len(used), frozenset({used.eos_token_id}))

    constraint = compiler.compile(
        FORMATS.validate_python({"type": "regex", "regex": r'\{"été": "an (an|東京) aba"}'})
    )

    assert constraint is not None
    assert write(constraint, used, seed=0) in {'{"été": "an an aba"}', '{"été": "an 東京 aba"}'}


def marked_ends() -> PreTrainedTokenizerFast:
    """As CLIP and the first GPT mark the end of a word."""
    backend = Tokenizer(models.BPE(vocab={"a": 0, "a</w>": 1, "<end>": 2}, merges=[], end_of_word_suffix="</w>"))
    backend.decoder = decoders.BPEDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def without_end() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (tokenizers.word_pieces, "its pieces carry marks (##)"),
        (marked_ends, "its pieces carry marks (</w>)"),
        (tokenizers.t5_pieces, "decoder type"),
        (without_end, "no end token"),
        (lambda: sentence_pieces(bytes_known=False), "do not give every text back"),
    ],
)
def test_a_tokenizer_whose_text_is_not_its_tokens_bytes_is_refused(make: Any, reason: str) -> None:
    """Its texts would break the format in spaces, in marks, or by not ending."""
    used: PreTrainedTokenizerBase = make()
    ends = frozenset() if used.eos_token_id is None else frozenset({used.eos_token_id})

    error = refusal(ConstraintCompiler(used, len(used), ends), {"type": "json_object"})

    assert error.param == "parameters.response_format"
    assert reason in error.message


def test_an_accent_apart_from_its_letter_stays_so(tokenizer: PreTrainedTokenizerFast) -> None:
    """Symptom: on a tokenizer that composes characters (Qwen's), a text that the format prescribes failed its
    sequence: "token doesn't satisfy the grammar".

    Cause: the library tokenizes what must come, and the tokenizer changed it. Fix: it gets one that changes nothing.
    """
    composing = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    composing.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    used = PreTrainedTokenizerFast(tokenizer_object=composing, eos_token=tokenizer.eos_token)
    compiler = ConstraintCompiler(used, len(used), frozenset({used.eos_token_id}))
    apart = unicodedata.normalize("NFD", "É été")

    constraint = compiler.compile(FORMATS.validate_python(for_schema({"const": apart})))

    assert constraint is not None
    assert json.loads(write(constraint, used, seed=0)) == apart
