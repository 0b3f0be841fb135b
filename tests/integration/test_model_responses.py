"""`/v1/responses` by a real model, through the unmodified OpenAI client."""

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel, ConfigDict

from tandem.embedded_service import EmbeddedService

MODEL = "smollm2-135m-instruct"
POLL_SECONDS = 0.05
SOON = 60.0
LOOK: Any = {
    "type": "function",
    "name": "look_up",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Paris"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture(scope="module")
def sdk(service: EmbeddedService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{service.api_url}/v1", api_key=service.api_key, max_retries=0, _strict_response_validation=True
    ) as sdk:
        yield sdk


def test_a_stream_and_a_whole_answer_are_the_same(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "input": "What is the capital of France?",
        "temperature": 0,
        "max_output_tokens": 4,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    whole = sdk.responses.create(**asked)
    assert (whole.status, len(whole.output_text) > 0) == ("incomplete", True)
    events = list(sdk.responses.create(**asked, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == whole.output_text
    assert sum(len(event.logprobs) for event in deltas) == 4
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == whole.output_text


def test_a_conversation_goes_on(sdk: openai.OpenAI) -> None:
    """As if the whole of it had been sent."""
    first = sdk.responses.create(model=MODEL, input="Name a colour.", temperature=0, max_output_tokens=12)
    going_on = sdk.responses.create(
        model=MODEL, input="Another one.", previous_response_id=first.id, temperature=0, max_output_tokens=12
    )
    spelt_out = sdk.responses.create(
        model=MODEL,
        input=[
            {"role": "user", "content": "Name a colour."},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "Another one."},
        ],
        temperature=0,
        max_output_tokens=12,
    )
    assert going_on.output_text == spelt_out.output_text


def test_what_does_not_fit_the_model_loses_its_oldest_turns(sdk: openai.OpenAI) -> None:
    """With `truncation: auto`, as if they had not been sent; the instructions stay."""
    turns: list[Any] = [
        {"role": "user", "content": "word " * 700},
        {"role": "assistant", "content": "word " * 700},
        {"role": "user", "content": "word " * 700},
        {"role": "assistant", "content": "A colour is red."},
        {"role": "user", "content": "Name a colour."},
    ]
    asked: dict[str, Any] = {"model": MODEL, "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 8}
    cut = sdk.responses.create(**asked, input=turns, truncation="auto")
    short = sdk.responses.create(**asked, input=turns[2:])
    assert cut.usage is not None
    assert short.usage is not None
    assert (cut.truncation, cut.output_text) == ("auto", short.output_text)
    assert cut.usage.input_tokens == short.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        sdk.responses.create(**asked, input=turns)


def test_a_function_is_called_and_its_output_answered(sdk: openai.OpenAI) -> None:
    with sdk.responses.stream(
        model=MODEL, input="Look up Rome.", tools=[LOOK], tool_choice="required", temperature=0, max_output_tokens=60
    ) as stream:
        called = stream.get_final_response()
    (call,) = called.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert json.loads(call.arguments)["city"] in ("Rome", "Paris")
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "It is sunny."}
    answer = sdk.responses.create(
        model=MODEL, input=[output], previous_response_id=called.id, temperature=0, max_output_tokens=8
    )
    assert answer.output_text


def test_a_form_is_filled_in(sdk: openai.OpenAI) -> None:
    class City(BaseModel):
        model_config = ConfigDict(extra="forbid")

        is_capital: bool

    answer = sdk.responses.parse(
        model=MODEL, input="Is Rome a capital?", text_format=City, temperature=0, max_output_tokens=60
    )
    assert isinstance(answer.output_parsed, City)


def test_one_in_the_background_is_polled_and_another_cancelled(sdk: openai.OpenAI) -> None:
    short = sdk.responses.create(model=MODEL, input="Hello", background=True, max_output_tokens=4, temperature=0)
    long = sdk.responses.create(
        model=MODEL, input="Count to a thousand.", background=True, max_output_tokens=1500, extra_body={"seed": 1}
    )
    deadline = time.monotonic() + SOON
    while sdk.responses.retrieve(short.id).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)  # as its clients do
    assert sdk.responses.retrieve(short.id).output_text
    assert sdk.responses.cancel(long.id).status == "cancelled"
