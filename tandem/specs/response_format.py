"""What the generated text must look like: any text, JSON, JSON of a schema, a regular expression or a grammar.

`type` and the two JSON forms are OpenAI's; `regex` and `grammar` are ours. Here only sizes are checked. Whether the
expression itself can be followed is said by the worker's library, when the job begins.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue

from tandem.specs.base import Spec

MAX_SCHEMA_CHARACTERS = 65_536
"""Characters of a schema as JSON. Compiling the worst of this size (2,600 optional properties) takes 2 s (M)."""
MAX_SCHEMA_DEPTH = 64
"""Lists and objects of a schema inside one another: people write ten, and deeper ones would be a parser's burden."""
MAX_REGEX_CHARACTERS = 16_384
"""Characters of a regular expression: an alternation of 2,000 words."""
MAX_GRAMMAR_CHARACTERS = 65_536
"""Characters of a grammar: those of whole programming languages have half of it."""
MAX_DESCRIPTION_CHARACTERS = 4096


def within_schema_limits(schema: Any) -> Any:
    """The schema itself. Asked before pydantic walks it: a deep schema would be a deep recursion."""
    if not isinstance(schema, dict):
        return schema  # pydantic says what is expected
    if any(depth > MAX_SCHEMA_DEPTH for depth in _depths(schema)):
        raise ValueError(
            f"has more than {MAX_SCHEMA_DEPTH} lists and objects inside one another; name its parts in `$defs` and "
            "refer to them with `$ref`"
        )
    try:
        size = len(json.dumps(schema, ensure_ascii=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if size > MAX_SCHEMA_CHARACTERS:
        raise ValueError(f"has {size} characters as JSON, and at most {MAX_SCHEMA_CHARACTERS} are taken; shorten it")
    return schema


def _depths(schema: dict[str, Any]) -> Iterator[int]:
    """How many containers each container is in, itself included; the outer ones first, so that a circle shows."""
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        yield depth
        inner = value.values() if isinstance(value, dict) else value
        waiting += [(part, depth + 1) for part in inner if isinstance(part, dict | list)]


class JsonSchema(Spec):
    """A schema with its name, as OpenAI wraps it."""

    # `schema` is a method of pydantic's models, so the attribute has another name than the field.
    model_config = ConfigDict(serialize_by_alias=True)

    name: str = Field(default="response", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """For people and logs; it changes nothing."""
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION_CHARACTERS)
    """The same. (Say in the prompt what the model should know.)"""
    schema_: Annotated[dict[str, JsonValue], BeforeValidator(within_schema_limits)] = Field(alias="schema")
    """JSON Schema, draft 2020-12 unless its `$schema` names another."""
    strict: bool | None = None
    """A keyword that cannot be enforced is refused by its name; `false` ignores it instead, and the text may then
    break the schema. (None is strict.)"""


class TextFormat(Spec):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Spec):
    """One JSON object, of whatever members."""

    type: Literal["json_object"]


class JsonSchemaFormat(Spec):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Spec):
    """A text that a regular expression matches from its first to its last character."""

    type: Literal["regex"]
    regex: str = Field(min_length=1, max_length=MAX_REGEX_CHARACTERS)
    """In the syntax of Rust's regex crate: Python's without backreferences and lookaround."""


class GrammarFormat(Spec):
    """A text of a context-free language."""

    type: Literal["grammar"]
    grammar: str = Field(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)
    """In the syntax of Lark: the text is what the rule `start` derives."""


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat, Field(discriminator="type")
]
