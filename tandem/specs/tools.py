"""Functions that a model may ask to be called, and its calls: in OpenAI's forms."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, field_validator

from tandem.specs.base import MAX_INPUT_CHARACTERS, Spec
from tandem.specs.response_format import MAX_DESCRIPTION_CHARACTERS, within_schema_limits

MAX_TOOLS = 128
"""Functions of one request (OpenAI's limit)."""
MAX_CALLS = 128
"""Calls in one message: as many as there may be functions."""
MAX_CALL_ID_CHARACTERS = 256
"""Of a call's id; ours have 29 characters, other servers' up to about 60."""

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(Spec):
    """What the model is told of a function."""

    name: FunctionName
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION_CHARACTERS)
    parameters: Annotated[dict[str, JsonValue], BeforeValidator(within_schema_limits)] | None = None
    """JSON Schema of an object, one property a parameter; None takes none."""
    strict: bool | None = None
    """Where a call is forced, `true` refuses a schema that cannot be enforced as a whole; otherwise the keywords that
    cannot be are ignored (OpenAI's default)."""

    @field_validator("parameters")
    @classmethod
    def _is_of_an_object(cls, schema: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        kind = "object" if schema is None else schema.get("type", "object")
        if kind != "object":
            raise ValueError(f"describes {kind!r}; a function's parameters are an object: give `type: object`")
        return schema


class Tool(Spec):
    type: Literal["function"]
    function: Function


class FunctionReference(Spec):
    name: FunctionName


class NamedTool(Spec):
    """One of the tools, by its name."""

    type: Literal["function"]
    function: FunctionReference


ToolChoice = Literal["none", "auto", "required"] | NamedTool
"""`auto`: the model decides; `required`: it must call some function; a named tool: it must call that one."""


class CalledFunction(Spec):
    name: FunctionName
    arguments: str = Field(max_length=MAX_INPUT_CHARACTERS)
    """A JSON object, as text."""

    @field_validator("arguments")
    @classmethod
    def _is_an_object(cls, arguments: str) -> str:
        # Models call functions without parameters with nothing at all; OpenAI's clients send that back unchanged.
        if arguments and not isinstance(_json(arguments), dict):
            raise ValueError("is not a JSON object; send the arguments as the text of one, such as '{}'")
        return arguments


class ToolCall(Spec):
    """One call in an assistant's message."""

    id: str = Field(min_length=1, max_length=MAX_CALL_ID_CHARACTERS)
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it: with the arguments as an object."""
        arguments = json.loads(self.function.arguments or "{}")
        return {
            "id": self.id,
            "type": self.type,
            "function": {"name": self.function.name, "arguments": arguments},
        }


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the second of lists inside one another without end
        return None
