"""Response formats: OpenAI's forms and ours are read, and what is too large is refused by field and limit."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from tandem.specs.base import Spec
from tandem.specs.response_format import (
    MAX_GRAMMAR_CHARACTERS,
    MAX_REGEX_CHARACTERS,
    MAX_SCHEMA_CHARACTERS,
    MAX_SCHEMA_DEPTH,
    JsonSchemaFormat,
    ResponseFormat,
)


class Parameters(Spec):
    """As a job's parameters hold a format."""

    response_format: ResponseFormat | None = None


def read(response_format: dict[str, Any]) -> Parameters:
    return Parameters.model_validate({"response_format": response_format})


def with_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}},
        {"type": "json_schema", "json_schema": {"name": "a", "description": "b", "schema": {"b": 1, "a": [2]}}},
        {"type": "regex", "regex": "[a-z]+"},
        {"type": "grammar", "grammar": 'start: "a"'},
    ],
)
def test_a_format_comes_out_of_a_record_as_it_went_in(response_format: dict[str, Any]) -> None:
    """A record leaves out defaults; the order of a schema's properties, which is that of the text, stays."""
    parameters = read(response_format)

    stored = parameters.model_dump_json(exclude_defaults=True)

    assert parameters.model_dump(mode="json", exclude_defaults=True)["response_format"] == response_format
    assert Parameters.model_validate_json(stored) == parameters
    assert Parameters.model_validate_json(stored).model_dump_json() == parameters.model_dump_json()


def test_a_schema_is_at_hand_under_its_own_name() -> None:
    parameters = read(with_schema({"type": "integer"}))

    assert isinstance(parameters.response_format, JsonSchemaFormat)
    assert parameters.response_format.json_schema.schema_ == {"type": "integer"}


@pytest.mark.parametrize(
    ("response_format", "field", "message"),
    [
        ({"type": "xml"}, (), "'xml'.*'text', 'json_object', 'json_schema', 'regex', 'grammar'"),
        ({"type": "regex"}, ("regex", "regex"), "required"),
        ({"type": "regex", "regex": "a" * (MAX_REGEX_CHARACTERS + 1)}, ("regex", "regex"), str(MAX_REGEX_CHARACTERS)),
        (
            {"type": "grammar", "grammar": "a" * (MAX_GRAMMAR_CHARACTERS + 1)},
            ("grammar", "grammar"),
            str(MAX_GRAMMAR_CHARACTERS),
        ),
        ({"type": "json_object", "schema": {}}, ("json_object", "schema"), "not permitted"),
        (with_schema([]), ("json_schema", "json_schema", "schema"), "dictionary"),
        (
            with_schema({"enum": ["a" * MAX_SCHEMA_CHARACTERS]}),
            ("json_schema", "json_schema", "schema"),
            f"at most {MAX_SCHEMA_CHARACTERS}",
        ),
        (
            with_schema(nested(MAX_SCHEMA_DEPTH + 1)),
            ("json_schema", "json_schema", "schema"),
            rf"more than {MAX_SCHEMA_DEPTH} .*\$ref",
        ),
        (with_schema({"enum": [object()]}), ("json_schema", "json_schema", "schema"), "is not JSON"),
        (
            {"type": "json_schema", "json_schema": {"name": "no spaces", "schema": {}}},
            ("json_schema", "json_schema", "name"),
            "pattern",
        ),
    ],
)
def test_what_cannot_be_taken_is_refused_by_its_field(
    response_format: dict[str, Any], field: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        read(response_format)

    (error,) = refused.value.errors()
    assert error["loc"] == ("response_format", *field)
    assert re.search(message, error["msg"])


def test_the_deepest_schema_is_taken() -> None:
    assert read(with_schema(nested(MAX_SCHEMA_DEPTH))).response_format is not None


def test_a_schema_without_a_bottom_is_refused() -> None:
    """The depth is counted without recursion, before anything walks the schema that recurs."""
    schema: dict[str, Any] = {}
    schema["items"] = schema

    with pytest.raises(ValidationError, match=f"more than {MAX_SCHEMA_DEPTH}"):
        read(with_schema(schema))
