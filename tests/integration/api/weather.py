"""A function that a model may call, as `/v1/responses` is told of it, and a worker's result that calls it."""

from typing import Any

from openai.types.responses import FunctionToolParam

from tests.integration.api.stand_in_worker import generated

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
TOOLS: list[FunctionToolParam] = [
    {"type": "function", "name": "get_weather", "parameters": WEATHER["parameters"], "strict": True}
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
CALLED = {**generated("", "tool_calls"), "tool_calls": [CALL]}
