"""Tools through the unmodified OpenAI client: what reaches the job, and what its calls look like, streamed too."""

from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tandem.errors import InvalidRequest
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker, generated

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How is the weather in Paris?"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}

BROKEN_CALL = {**CALL, "function": {"name": "f", "arguments": "["}}


def called(text: str = "", *calls: dict[str, Any]) -> dict[str, Any]:
    return {**generated(text, "tool_calls"), "tool_calls": list(calls or (CALL,))}


def test_a_call_is_answered_and_its_result_sent_back(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    """The answer's message goes into the next request as it is, as OpenAI's guide does it."""
    specs = []

    def work(worker: StandInWorker) -> None:
        for result in (called(), generated("It is sunny.")):
            claim = worker.take()
            specs.append(claim.job.spec)
            worker.succeed(claim, result)

    with worker.working(work):
        first = sdk.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, tools=[WEATHER], tool_choice="auto")
        (choice,) = first.choices
        assert choice.message.tool_calls is not None
        history: list[Any] = [
            *QUESTION,
            choice.message,
            {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "sunny"},
        ]
        second = sdk.chat.completions.create(model=CHAT_MODEL, messages=history, tools=[WEATHER])

    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert [call.model_dump() for call in choice.message.tool_calls] == [CALL]
    assert second.choices[0].message.content == "It is sunny."
    assert second.choices[0].message.tool_calls is None
    assert specs[0]["tools"][0]["function"]["name"] == "get_weather"
    assert specs[1]["inputs"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [{k: v for k, v in CALL.items() if k != "type"}]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    ]


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        ("required", "required"),
        ("none", "none"),
        ({"type": "function", "function": {"name": "get_weather"}},) * 2,
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "get_weather"}}],
                },
            },
            "required",
        ),
    ],
    ids=["required", "none", "named", "allowed"],
)
def test_every_choice_of_tools_reaches_the_job(
    sdk: openai.OpenAI, worker: StandInWorker, choice: Any, kept: Any
) -> None:
    other: ChatCompletionToolParam = {"type": "function", "function": {"name": "get_time"}}
    specs = []

    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        specs.append(claim.job.spec)
        worker.succeed(claim, called())

    with worker.working(work):
        sdk.chat.completions.create(
            model=CHAT_MODEL,
            messages=QUESTION,
            tools=[WEATHER, other],
            tool_choice=choice,
            parallel_tool_calls=False,
        )
    assert specs[0]["tool_choice"] == kept
    assert specs[0]["parallel_tool_calls"] is False
    allowed = ["get_weather"] if isinstance(choice, dict) and choice["type"] == "allowed_tools" else None
    assert [tool["function"]["name"] for tool in specs[0]["tools"]] == (allowed or ["get_weather", "get_time"])


def test_calls_are_streamed_while_they_are_written(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    """The first of a call's pieces has its id and name; what a lost attempt repeats is not sent again."""

    def events(worker: StandInWorker, claim: Any, *pieces: str) -> None:
        told: list[tuple[str, dict[str, Any]]] = [
            ("tokens", {"text": "Let me see. "}),
            ("tool_call", {"call": 0, "id": "call_1", "name": "get_weather", "arguments": ""}),
            *(("tool_call", {"call": 0, "arguments": piece}) for piece in pieces),
        ]
        worker.jobs.report(claim.job.id, claim.fence, told)

    def work(worker: StandInWorker) -> None:
        lost = worker.take()
        events(worker, lost, '{"ci', "ty")
        worker.jobs.release(lost.job.id, lost.fence)
        again = worker.take()
        events(worker, again, '{"city": "P', "aris")
        second = {**CALL, "id": "call_2"}
        worker.succeed(again, called("Let me see. ", CALL, second))

    said, calls = "", dict[int, dict[str, str]]()
    with worker.working(work):
        chunks = list(
            sdk.chat.completions.create(
                model=CHAT_MODEL, messages=QUESTION, tools=[WEATHER], temperature=0, stream=True
            )
        )
    for delta in (chunk.choices[0].delta for chunk in chunks):
        said += delta.content or ""
        for call in delta.tool_calls or ():
            assert call.function is not None
            if call.id is not None:
                assert call.type == "function"
                calls[call.index] = {"id": call.id, "name": call.function.name or "", "arguments": ""}
            calls[call.index]["arguments"] += call.function.arguments or ""
    expected = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert said == "Let me see. "
    assert calls == {0: {"id": "call_1", **expected}, 1: {"id": "call_2", **expected}}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_clients_own_stream_puts_calls_together(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    with (
        worker.answering(called()),
        sdk.chat.completions.stream(model=CHAT_MODEL, messages=QUESTION, tools=[WEATHER]) as stream,
    ):
        answer = stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    (call,) = calls
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "get_weather", '{"city": "Paris"}')


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"tools": [WEATHER, WEATHER]}, None, "two functions named 'get_weather'"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            None,
            "none of the tools",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0", "`tool_call_id`"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [BROKEN_CALL]}]},
            "messages.0.tool_calls.0.function.arguments",
            "not a JSON object",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools.0.function.parameters",
            "object",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
    ],
)
def test_tools_that_cannot_be_used_are_refused_by_name(
    client: httpx.Client, changes: dict[str, object], param: str | None, said: str
) -> None:
    answer = client.post("/v1/chat/completions", json={"model": CHAT_MODEL, "messages": QUESTION} | changes)
    found = answer.json()["error"]
    assert (answer.status_code, found["param"]) == (400, param)
    assert said in found["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "param", "said"),
    [
        (
            InvalidRequest(
                "`parameters.response_format.regex` cannot be followed", param="parameters.response_format.regex"
            ),
            "response_format.regex",
            "`response_format.regex` cannot",
        ),
        (InvalidRequest("`inputs`: refused", param="inputs"), "messages", "`messages`: refused"),
        (InvalidRequest("`tools`: unknown", param="tools"), "tools", "`tools`: unknown"),
        (
            InvalidRequest("more than (max_new_tokens)", param="parameters.max_new_tokens"),
            "max_tokens",
            "(max_tokens)",
        ),
    ],
    ids=["format", "messages", "tools", "tokens"],
)
def test_what_the_worker_refuses_is_named_as_the_request_names_it(
    sdk: openai.OpenAI, worker: StandInWorker, error: InvalidRequest, param: str, said: str, stream: bool
) -> None:
    with worker.failing(error), pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, stream=stream)
    assert caught.value.param == param
    assert said in caught.value.message
