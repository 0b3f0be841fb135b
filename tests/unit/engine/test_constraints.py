"""Constrained output: whatever the logits say, the text follows its format. With SmolLM2's own tokenizer."""

import ast
import json
import math
import re
import threading
from typing import Any

import jsonschema
import pytest
import torch
from pydantic import TypeAdapter
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tandem.errors import InvalidRequest, TandemError
from tandem.settings import Settings
from tandem.specs.response_format import ResponseFormat
from tests.unit.engine.constrained_text import takes, write
from worker.engine.tokens import constraints
from worker.engine.tokens.constraints import ConstraintCompiler, GrammarConstraint

FORMATS: TypeAdapter[ResponseFormat] = TypeAdapter(ResponseFormat)
PADDING = 64
"""Logits beyond the tokenizer's tokens, as models with padded embeddings have them."""
SEEDS = range(3)


def short(length: int = 12, **keywords: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": length, **keywords}


def an_object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "person": an_object(name=short(minLength=1), age={"type": "integer", "minimum": 0, "maximum": 130}),
    "nested": an_object(a=an_object(b=an_object(c={"type": "boolean"}), d={"type": "null"})),
    "arrays": an_object(
        tags={"type": "array", "items": short(5), "minItems": 2, "maxItems": 4},
        pair={"type": "array", "prefixItems": [{"const": 1}, short(3)], "minItems": 2, "items": False},
    ),
    "enumeration": {"enum": ["Zürich", "東京", "🙂🙃", 'a "quoted" \\ one', 7, None, {"a": [1]}]},
    "numbers": {
        "type": "array",
        "minItems": 4,
        "maxItems": 4,
        "items": {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": -1.5, "maximum": 2.25},
                {"type": "integer", "minimum": -999, "exclusiveMaximum": 10},
                {"type": "integer", "multipleOf": 7, "minimum": 1},
            ]
        },
    },
    "strings": an_object(
        code={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
        both={"type": "string", "pattern": "^(ab)+$", "minLength": 3, "maxLength": 7},
        day={"type": "string", "format": "date"},
        id={"type": "string", "format": "uuid"},
        place={"type": "string", "format": "ipv4"},
    ),
    "map": {
        "type": "object",
        "patternProperties": {"^x_[a-z]{1,8}$": {"type": "integer", "minimum": 0, "maximum": 9}},
        "additionalProperties": False,
    },
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": an_object(
                value=short(4),
                children={"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/node"}},
            )
        },
    },
    "choice": {
        "oneOf": [
            an_object(kind={"const": "cat"}, lives={"enum": [9]}),
            an_object(kind={"const": "dog"}, age={"type": "integer", "minimum": 0, "maximum": 30}),
        ]
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": 2}},
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def smollm2() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 49,152 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(Settings().models_dir / "smollm2-135m-instruct")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


@pytest.fixture(scope="module")
def compiler(smollm2: PreTrainedTokenizerFast) -> ConstraintCompiler:
    return ConstraintCompiler(smollm2, len(smollm2) + PADDING, frozenset({smollm2.eos_token_id}))


def compiled(compiler: ConstraintCompiler, response_format: dict[str, Any]) -> GrammarConstraint:
    constraint = compiler.compile(FORMATS.validate_python(response_format))
    assert constraint is not None
    return constraint


def for_schema(schema: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_text_of_a_schema_is_json_that_the_schema_describes(
    compiler: ConstraintCompiler, smollm2: PreTrainedTokenizerFast, name: str, seed: int
) -> None:
    text = write(compiled(compiler, for_schema(SCHEMAS[name])), smollm2, seed=seed, padding=PADDING)

    checker = jsonschema.Draft202012Validator(
        SCHEMAS[name], format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    checker.validate(json.loads(text))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": [1, -2.5e3, True, None, "x"], "b": {"c": "Grüße, 東京 🙂"}},
        {"escaped": 'a "b" \\ / \n \t \x01'},
    ],
)
def test_a_json_object_may_be_any_object(
    compiler: ConstraintCompiler, smollm2: PreTrainedTokenizerFast, value: dict[str, Any]
) -> None:
    for indent in (None, 2):
        constraint = compiled(compiler, {"type": "json_object"})
        text = json.dumps(value, ensure_ascii=False, indent=indent)

        assert takes(constraint, smollm2.encode(text), len(smollm2))
        assert constraint.is_finished


@pytest.mark.parametrize("text", ["[1]", '"a"', " {}", '{"a"}', "{'a': 1}", '{"a": 01}', '{"a": 1,}', "Sure: {}"])
def test_a_json_object_is_nothing_else(
    compiler: ConstraintCompiler, smollm2: PreTrainedTokenizerFast, text: str
) -> None:
    assert not takes(compiled(compiler, {"type": "json_object"}), smollm2.encode(text), len(smollm2))


def test_white_space_does_not_go_on_for_ever(compiler: ConstraintCompiler, smollm2: PreTrainedTokenizerFast) -> None:
    """A model that has nothing to say would print it until its tokens are used up."""
    blank = {token: 100.0 for piece, token in smollm2.get_vocab().items() if set(piece) <= set("ĠĊĉ")}
    assert len(blank) > 10

    text = write(compiled(compiler, for_schema(SCHEMAS["nested"])), smollm2, seed=0, padding=PADDING, bonus=blank)

    assert json.loads(text)
    assert max(len(run) for run in re.findall(r"\s+", text)) <= 65


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "regex",
    [
        r"[a-z]{3,9}",
        r"\d{3}-\d{4}",
        r"(yes|no|maybe)( indeed){0,2}",
        r"[äöü]{1,5}[^a]",
        r"^(?i:berlin|東京)$",
        r"a/b\nc",
    ],
)
def test_a_regex_matches_the_whole_text(
    compiler: ConstraintCompiler, smollm2: PreTrainedTokenizerFast, regex: str, seed: int
) -> None:
    text = write(compiled(compiler, {"type": "regex", "regex": regex}), smollm2, seed=seed, padding=PADDING)

    assert re.fullmatch(regex, text)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_text_of_a_grammar_is_derived_from_it(
    compiler: ConstraintCompiler, smollm2: PreTrainedTokenizerFast, seed: int
) -> None:
    """Sums and products with brackets: what no regular expression describes."""
    grammar = """
        start: product (("+" | "-") product){0,3}
        product: factor ("*" factor){0,2}
        factor: NUMBER | "(" start ")"
        NUMBER: /[1-9][0-9]{0,3}/
    """
    digits = {smollm2.convert_tokens_to_ids(digit): 3.0 for digit in "123456789"}

    text = write(
        compiled(compiler, {"type": "grammar", "grammar": grammar}), smollm2, seed=seed, padding=PADDING, bonus=digits
    )

    assert set(text) <= set("0123456789+-*()")
    assert isinstance(ast.parse(text, mode="eval"), ast.Expression)


def test_any_text_needs_no_constraint(compiler: ConstraintCompiler) -> None:
    assert compiler.compile(FORMATS.validate_python({"type": "text"})) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_takes_out_what_may_not_follow_and_leaves_the_rest(
    compiler: ConstraintCompiler, smollm2: PreTrainedTokenizerFast, dtype: torch.dtype
) -> None:
    logits = torch.randn(len(smollm2) + PADDING).to(dtype)
    logits[len(smollm2) :] = 100.0
    before = logits.clone()

    compiled(compiler, {"type": "regex", "regex": "[ab]"}).mask(logits)

    allowed = smollm2.convert_tokens_to_ids(["a", "b"])
    assert sorted(logits.isfinite().nonzero()[:, 0].tolist()) == sorted(allowed)
    assert torch.equal(logits[allowed], before[allowed])
    assert logits[len(smollm2)] == -math.inf


def test_a_text_may_end_where_it_is_complete(smollm2: PreTrainedTokenizerFast) -> None:
    """By any of the model's end tokens; where it cannot go on, the constraint is finished."""
    ends = smollm2.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    compiler = ConstraintCompiler(smollm2, len(smollm2), frozenset(ends))
    constraint = compiled(compiler, {"type": "regex", "regex": "ab?"})
    a, b = smollm2.convert_tokens_to_ids(["a", "b"])

    def may_end() -> list[bool]:
        logits = torch.zeros(len(smollm2))
        constraint.mask(logits)
        return logits[ends].isfinite().tolist()

    assert may_end() == [False, False]
    constraint.accept(a)
    assert (may_end(), constraint.is_finished) == ([True, True], False)
    constraint.accept(b)
    assert (may_end(), constraint.is_finished) == ([True, True], True)
    constraint.accept(ends[1])
    assert constraint.is_finished


def test_sequences_of_one_format_do_not_touch_each_other(
    compiler: ConstraintCompiler, smollm2: PreTrainedTokenizerFast
) -> None:
    """They are compiled once, from many threads at once, and each goes its own way."""
    expected = [
        write(compiled(compiler, for_schema(SCHEMAS["tree"])), smollm2, seed=seed, padding=PADDING)
        for seed in range(6)
    ]
    fresh = ConstraintCompiler(smollm2, len(smollm2) + PADDING, frozenset({smollm2.eos_token_id}))
    written: dict[int, str] = {}

    def run(seed: int) -> None:
        written[seed] = write(compiled(fresh, for_schema(SCHEMAS["tree"])), smollm2, seed=seed, padding=PADDING)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [written[seed] for seed in range(6)] == expected
    assert len(set(expected)) > 1
    assert fresh.cached == 1


def test_formats_that_were_not_used_for_longest_are_forgotten(
    smollm2: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraints, "MAX_COMPILED", 2)
    compiler = ConstraintCompiler(smollm2, len(smollm2), frozenset({smollm2.eos_token_id}))

    for letter in "abca":
        constraint = compiled(compiler, {"type": "regex", "regex": letter})
        assert takes(constraint, smollm2.convert_tokens_to_ids([letter]), len(smollm2))

    assert compiler.cached == 2


@pytest.mark.parametrize(
    ("response_format", "said"),
    [
        ({"type": "regex", "regex": "a("}, r"unclosed group\. Mend what it points at; .* Rust's regex crate"),
        ({"type": "regex", "regex": "(?=a)"}, r"look-around, .* is not supported\. Mend"),
        ({"type": "grammar", "grammar": "start: ("}, r"Mend what it points at; the syntax is that of Lark"),
        ({"type": "grammar", "grammar": 'strt: "a"'}, r"no start rule found\. Mend"),
    ],
)
def test_a_broken_expression_is_to_be_mended_not_simplified(
    compiler: ConstraintCompiler, response_format: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"(?s){said}") as refused:
        compiled(compiler, response_format)
    assert "Simplify" not in refused.value.message


def test_a_token_that_was_not_allowed_is_a_defect(
    compiler: ConstraintCompiler, smollm2: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(TandemError, match="its mask was not applied"):
        compiled(compiler, {"type": "regex", "regex": "a"}).accept(smollm2.convert_tokens_to_ids("b"))


def test_a_grammar_that_grows_without_end_fails_its_own_sequence(
    compiler: ConstraintCompiler, smollm2: PreTrainedTokenizerFast
) -> None:
    """Ambiguous in ever more ways: what it may cost in a step is bounded, and then it is not cut off silently."""
    constraint = compiled(compiler, {"type": "grammar", "grammar": 'start: a\na: a a | "x" | a "y" a | ""'})
    x = smollm2.convert_tokens_to_ids("x")

    with pytest.raises(InvalidRequest, match=r"beyond \d+ tokens: .*max is 500.* Simplify it") as failed:
        takes(constraint, [x] * 600, len(smollm2))

    assert failed.value.param == "parameters.response_format.grammar"
