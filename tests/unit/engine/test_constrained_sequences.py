"""Constraints in the engine's batch: each text follows its own format, and neighbours notice nothing."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerFast

from tandem.errors import InvalidRequest
from tandem.specs import GenerationParameters
from tandem.specs.response_format import ResponseFormat
from tests.unit.engine.tiny_models import FAMILIES, VOCABULARY, Crowd, build_model, random_prompts
from worker.engine.sequence import Sequence
from worker.engine.tokens.constraints import ConstraintCompiler

FORMATS: TypeAdapter[ResponseFormat] = TypeAdapter(ResponseFormat)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def together(crowd: Callable[..., Crowd]) -> Crowd:
    return crowd(build_model(FAMILIES["llama"]()))


@pytest.fixture(scope="module")
def compiler(tokenizer: PreTrainedTokenizerFast) -> ConstraintCompiler:
    return ConstraintCompiler(tokenizer, VOCABULARY, frozenset({tokenizer.eos_token_id}))


def submit(
    together: Crowd, compiler: ConstraintCompiler, prompt: list[int], response_format: dict[str, Any], **parameters
) -> Sequence:
    constraint = compiler.compile(FORMATS.validate_python(response_format))
    sequence = Sequence(prompt, GenerationParameters(max_new_tokens=120, **parameters), constraint=constraint)
    together.engine.submit(sequence)
    return sequence


def test_constrained_texts_follow_their_formats_beside_free_ones(
    together: Crowd, compiler: ConstraintCompiler
) -> None:
    """Greedy and drawn, of several formats, in one batch; the free text is the one that it is alone."""
    prompts = random_prompts((9, 5, 7, 6))
    alone = together.generate(prompts[0], max_new_tokens=20).token_ids

    free = together.submit(prompts[0], max_new_tokens=20)
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    people = [
        submit(together, compiler, prompts[1], schema),
        submit(together, compiler, prompts[2], schema, temperature=1.0, top_p=0.9, seed=3),
    ]
    number = submit(together, compiler, prompts[3], {"type": "regex", "regex": "[0-9]{3}-[0-9]{4}"})
    together.run()

    assert free.future.result(0).token_ids == alone
    for person in people:
        generated = person.future.result(0)
        read = json.loads(generated.text)
        assert list(read) == ["name", "age"]
        assert len(read["name"]) <= 8
        assert 0 <= read["age"] <= 99
        assert generated.finish_reason == "stop"
    assert re.fullmatch("[0-9]{3}-[0-9]{4}", number.future.result(0).text)


def test_the_same_seed_draws_the_same_text_under_a_constraint(together: Crowd, compiler: ConstraintCompiler) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    sequences = [submit(together, compiler, [5, 6, 7], schema, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    together.run()
    first, again, other = (sequence.future.result(0).text for sequence in sequences)

    assert first == again
    assert first != other


def test_a_format_that_becomes_too_complex_fails_its_sequence_only(
    together: Crowd, compiler: ConstraintCompiler
) -> None:
    prompt = random_prompts((9,))[0]
    alone = together.generate(prompt, max_new_tokens=20).token_ids

    # Any of 400 properties may be the next.
    schema = {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(400)}}
    wide = {"type": "json_schema", "json_schema": {"name": "wide", "schema": schema}}
    failing = submit(together, compiler, [1, 2, 3], wide)
    free = together.submit(prompt, max_new_tokens=20)
    together.run()

    with pytest.raises(InvalidRequest, match="max is 500"):
        failing.future.result(0)
    assert free.future.result(0).token_ids == alone
