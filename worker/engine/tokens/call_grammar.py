"""The grammar of a forced tool call: whatever the model, its answer is a call that can be carried out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from tandem.specs.response_format import JsonSchemaFormat, ResponseFormat
from tandem.specs.tools import Function, Tool
from worker.engine.tokens.constraints import LIBRARY_OPTIONS_KEY, WHITE_SPACE

NO_PARAMETERS: dict[str, JsonValue] = {"type": "object", "properties": {}}
TOOLS_VARIABLE = "tools"
HERMES_MARK = "<tool_call>"
LLAMA_MARK = '"parameters": dictionary'
"""A part of the sentence by which Llama 3's chat templates tell the model how to write a call."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a model writes its calls: every one between `before` and `after`, several with `between` them."""

    before: str
    arguments: str
    """The member of the call's object that has the arguments."""
    after: str
    between: str
    opening: str = ""
    """Before the first and behind the last of calls of which there may be several."""
    closing: str = ""


HERMES = CallForm("<tool_call>\n", "arguments", "\n</tool_call>", "\n")
LLAMA = CallForm("", "parameters", "", "; ")
PLAIN = CallForm("", "arguments", "", ", ", "[", "]")


def call_form(template: str) -> CallForm:
    """The form that a chat template teaches its model: Hermes's, Llama 3's, or else plain JSON, as Mistral has it.

    Hermes's also where it knows no tools: it is the form in which earlier calls are then spelt out for the model.
    """
    if HERMES_MARK in template or TOOLS_VARIABLE not in template:
        return HERMES
    return LLAMA if LLAMA_MARK in template else PLAIN


def call_grammar(tools: Sequence[Tool], form: CallForm, *, many: bool, answer: ResponseFormat | None = None) -> str:
    """In llguidance's dialect of Lark: one call of one of the tools, or with `many` one after another.

    With an `answer`, which must be of a JSON type, the text may be that instead of a call.
    """
    before, after, between = (json.dumps(text) for text in (form.before, form.after, form.between))
    opening, closing = (json.dumps(text) for text in (form.opening, form.closing))
    calls = f"{opening} call ({between} call)* {closing}" if many else "call"
    rules = [f"start: {'answer | ' if answer is not None else ''}calls", f"calls: {calls}"]
    rules += ["call: " + " | ".join(f"call_{number}" for number in range(len(tools)))]
    for number, tool in enumerate(tools):
        head = json.dumps(f'{{"name": {json.dumps(tool.function.name)}, "{form.arguments}": ')
        rules.append(f'call_{number}: {before} {head} arguments_{number} "}}" {after}')
        rules.append(f"arguments_{number}: %json {_embedded(*arguments_schema(tool.function))}")
    if isinstance(answer, JsonSchemaFormat):
        schema = answer.json_schema
        rules.append(f"answer: %json {_embedded(schema.schema_, lenient=schema.strict is False)}")
    elif answer is not None:
        rules.append(f"answer: %json {_embedded({'type': 'object'}, lenient=False)}")
    return "\n".join(rules)


def arguments_schema(function: Function) -> tuple[dict[str, JsonValue], bool]:
    """The schema of a function's arguments, and whether what cannot be enforced in it is ignored."""
    schema = NO_PARAMETERS if function.parameters is None else function.parameters
    if "$ref" not in schema:
        schema = {"type": "object", **schema}
    if "properties" in schema:
        # A call with parameters that the function does not have cannot be carried out.
        schema = {"additionalProperties": False, **schema}
    return schema, function.strict is not True


def _embedded(schema: dict[str, Any], lenient: bool) -> str:
    options = {"whitespace_pattern": WHITE_SPACE, "lenient": lenient}
    return json.dumps({**schema, LIBRARY_OPTIONS_KEY: options})
