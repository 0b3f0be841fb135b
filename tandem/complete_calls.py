"""Tool calls that are read when they are complete, because their members stand in another order or form."""

import json
import re
from dataclasses import dataclass
from typing import Any

XML_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)(?:</function>)?\s*", re.DOTALL)
XML_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FoundCall:
    name: str
    arguments: str


def as_object(value: str) -> str:
    """Arguments that are not written as an object: as one in a string, or not at all."""
    try:
        read: Any = json.loads(value)
    except ValueError:
        return value  # the model's own, as it stands
    if read is None:
        return "{}"
    return read if isinstance(read, str) else value


def other_form(inside: str) -> FoundCall | None:
    """A call between its tags with its members in another order, nested, or in Qwen3-Coder's form."""
    if xml := XML_FUNCTION.fullmatch(inside):
        parameters = {key: _plain_value(value) for key, value in XML_PARAMETER.findall(xml[2])}
        return FoundCall(xml[1], json.dumps(parameters, ensure_ascii=False))
    try:
        call = json.loads(inside)
    except (ValueError, RecursionError):
        return None
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters")) or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return FoundCall(call["name"], text)


def _plain_value(text: str) -> Any:
    """Numbers, truth values and structures as JSON has them; everything else is a string."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
