"""`/v1/responses` through the unmodified OpenAI client, which checks the shape of every answer and event."""

from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import (
    Response,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)
from pydantic import BaseModel

from tandem.errors import PromptTooLong
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker, generated
from tests.integration.api.weather import CALLED, WEATHER


def answer(sdk: openai.OpenAI, worker: StandInWorker, result: dict[str, Any], **asked: Any) -> tuple[Response, Any]:
    """A response that is waited for, and the spec of the job behind it."""
    specs = []

    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        specs.append(claim.job.spec)
        worker.succeed(claim, result)

    with worker.working(work):
        response = sdk.responses.create(**{"model": CHAT_MODEL, "input": "Hello", **asked})
    return response, specs[0]


# Whole


def test_a_text_is_answered(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    response, spec = answer(sdk, worker, generated("Hello to you"), instructions="Be brief.", max_output_tokens=9)
    assert (response.output_text, response.status, response.error) == ("Hello to you", "completed", None)
    assert response.id.startswith("resp_")
    assert (response.instructions, response.max_output_tokens) == ("Be brief.", 9)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 3, 10)
    assert spec["inputs"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert spec["parameters"] == {"max_new_tokens": 9, "temperature": 1.0}


def test_a_text_that_its_limit_has_cut_is_incomplete(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    response, _ = answer(sdk, worker, generated("Hello to", "length"))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.completed_at is None


def test_what_is_asked_comes_back_and_reaches_the_job(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    response, spec = answer(
        sdk,
        worker,
        generated("{}"),
        text={"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}},
        temperature=0.5,
        top_p=0.9,
        metadata={"customer": "17"},
        service_tier="flex",
        user="someone",
        prompt_cache_key="key",
        extra_body={"seed": 7},
    )
    assert (response.temperature, response.top_p, response.metadata) == (0.5, 0.9, {"customer": "17"})
    assert (response.service_tier, response.user, response.prompt_cache_key) == ("flex", "someone", "key")
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.to_dict()["schema"] == schema
    assert (spec["priority"], spec["metadata"], spec["parameters"]["seed"]) == ("low", {"customer": "17"}, 7)
    assert spec["parameters"]["response_format"]["json_schema"]["schema"] == schema


def test_what_open_responses_demands_is_there(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    """The specification of openresponses.org has fields that OpenAI's client does not know, and whole seconds."""
    response, spec = answer(sdk, worker, generated("Hello to you"), extra_body={"presence_penalty": 0.5})
    told = response.to_dict()
    assert (told["presence_penalty"], told["frequency_penalty"], told["top_logprobs"]) == (0.5, 0.0, 0)
    assert isinstance(response.completed_at, float)
    assert response.completed_at.is_integer()
    assert spec["parameters"]["presence_penalty"] == 0.5


def test_log_probabilities_come_if_they_are_included(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    token = {"token": "yes", "id": 5, "logprob": -0.5, "bytes": [121, 101, 115]}
    result = {**generated("yes"), "logprobs": [{**token, "top_logprobs": [token]}]}
    response, spec = answer(sdk, worker, result, include=["message.output_text.logprobs"], top_logprobs=1)
    message = response.output[0]
    assert isinstance(message, ResponseOutputMessage)
    (part,) = message.content
    assert isinstance(part, ResponseOutputText)
    assert part.logprobs is not None
    (told,) = part.logprobs
    assert (told.token, told.logprob, told.bytes) == ("yes", -0.5, [121, 101, 115])
    assert [top.token for top in told.top_logprobs] == ["yes"]
    assert (spec["parameters"]["logprobs"], spec["parameters"]["top_logprobs"]) == (True, 1)


def test_a_form_is_parsed_by_the_client(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    class Answer(BaseModel):
        city: str

    with worker.answering(generated('{"city": "Rome"}')):
        response = sdk.responses.parse(model=CHAT_MODEL, input="Where?", text_format=Answer)
    assert response.output_parsed == Answer(city="Rome")


def test_a_failed_job_is_its_http_error(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    for stream in (False, True):
        with (
            worker.failing(PromptTooLong("5000 tokens do not fit 2048", param="inputs")),
            pytest.raises(openai.BadRequestError, match="5000 tokens") as caught,
        ):
            sdk.responses.create(model=CHAT_MODEL, input="Hello", stream=stream)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


# Functions


def test_a_call_and_its_output_go_round(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    """What the model has called is sent back with what the function returned, item by item."""
    first, spec = answer(
        sdk, worker, CALLED, tools=[WEATHER], tool_choice={"type": "function", "name": "get_weather"}
    )
    (call,) = first.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, call.arguments, call.call_id) == ("get_weather", '{"city": "Rome"}', "call_1")
    assert spec["tools"][0]["function"]["parameters"] == WEATHER["parameters"]
    assert spec["tool_choice"]["function"]["name"] == "get_weather"
    items: list[Any] = [
        {"role": "user", "content": "Weather?"},
        *first.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    second, spec = answer(sdk, worker, generated("Sunny."), input=items, tools=[WEATHER])
    assert second.output_text == "Sunny."
    asked, called, returned = spec["inputs"]
    assert asked == {"role": "user", "content": "Weather?"}
    assert called["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    assert returned == {"role": "tool", "content": "sunny", "tool_call_id": "call_1", "name": "get_weather"}


def test_an_output_without_its_call_is_refused(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the call itself is not before it"):
        sdk.responses.create(
            model=CHAT_MODEL, input=[{"type": "function_call_output", "call_id": "call_9", "output": "x"}]
        )


# Kept


def test_a_conversation_is_continued_by_its_last_response(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    first, _ = answer(sdk, worker, generated("I am Ada."), input="Who are you?", instructions="Be Ada.")
    second, spec = answer(sdk, worker, generated("Fine."), input="And how?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    said = [(message["role"], message["content"]) for message in spec["inputs"]]
    assert said == [("user", "Who are you?"), ("assistant", "I am Ada."), ("user", "And how?")], "no instructions"
    third, spec = answer(
        sdk, worker, generated("Bye."), input="Bye", previous_response_id=second.id, instructions="Be short."
    )
    assert [message["content"] for message in spec["inputs"]][-3:] == ["And how?", "Fine.", "Bye"]
    assert spec["inputs"][0] == {"role": "system", "content": "Be short."}
    sdk.responses.delete(first.id)
    fourth, spec = answer(sdk, worker, generated("!"), input="?", previous_response_id=third.id)
    assert spec["inputs"][0]["content"] == "Who are you?", "a deleted response's is kept"
    items = list(sdk.responses.input_items.list(fourth.id, order="asc", limit=2))
    assert len(items) == 7
    assert len({item.id for item in items}) == 7
    newest = sdk.responses.input_items.list(fourth.id, limit=1).data
    assert [item.id for item in newest] == [items[-1].id]


def test_calls_are_part_of_the_conversation(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    first, _ = answer(sdk, worker, CALLED, input="Weather?", tools=[WEATHER])
    output = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
    _, spec = answer(sdk, worker, generated("Sunny."), input=[output], tools=[WEATHER], previous_response_id=first.id)
    assert [message["role"] for message in spec["inputs"]] == ["user", "assistant", "tool"]


def test_one_that_has_not_ended_is_not_continued(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model=CHAT_MODEL, input="Hi", background=True)
    with pytest.raises(openai.BadRequestError, match="is queued") as caught:
        sdk.responses.create(model=CHAT_MODEL, input="And?", previous_response_id=first.id)
    assert caught.value.param == "previous_response_id"


def test_what_is_deleted_or_was_not_stored_is_unknown(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    kept, _ = answer(sdk, worker, generated("Hello"))
    unkept, _ = answer(sdk, worker, generated("Hello"), store=False)
    sdk.responses.delete(kept.id)
    for gone in (kept.id, unkept.id, "resp_unknown", "unknown"):
        with pytest.raises(openai.NotFoundError) as caught:
            sdk.responses.retrieve(gone)
        assert caught.value.code == "response_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.responses.create(model=CHAT_MODEL, input="And?", previous_response_id=kept.id)
    assert caught.value.param == "previous_response_id"


def test_deleting_one_in_progress_stops_it(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    response = sdk.responses.create(model=CHAT_MODEL, input="Hi", background=True)
    sdk.responses.delete(response.id)
    job = worker.jobs.get(response.id.replace("resp_", "job_"))
    assert job.state == "cancelled"


def test_a_job_that_is_no_response_is_none(client: httpx.Client, worker: StandInWorker) -> None:
    body = {"kind": "inference", "task": "text-generation", "model": CHAT_MODEL, "inputs": "Hello"}
    job = client.post("/v1/jobs", json=body).json()["id"]
    assert client.get(f"/v1/responses/{job.replace('job_', 'resp_')}").status_code == 404
    forged = client.post("/v1/jobs", json={**body, "response": {"request": {"model": 3}}}).json()["id"]
    assert client.get(f"/v1/responses/{forged.replace('job_', 'resp_')}").status_code == 404


def test_a_repeated_request_with_a_key_gets_the_first_response(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    headers = {"Idempotency-Key": "question-1"}
    first, _ = answer(sdk, worker, generated("once"), extra_headers=headers)
    assert sdk.responses.create(model=CHAT_MODEL, input="Hello", extra_headers=headers) == first
    with pytest.raises(openai.ConflictError):
        sdk.responses.create(model=CHAT_MODEL, input="Hello", metadata={"a": "b"}, extra_headers=headers)


# Refused


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"conversation": "conv_1"}, "conversation", "unsupported parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported parameter"),
        ({"truncation": "oldest"}, "truncation", "disabled"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "none"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "medium"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
        ({"tools": [{"type": "web_search"}]}, "tools.0", "'web_search'; taken: function"),
        ({"tool_choice": "required"}, None, "no `tools`"),
        ({"background": True, "store": False}, None, "store: true"),
        ({"stream_options": {}}, None, "stream: true"),
        ({"top_logprobs": 2}, None, "include"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input.0", "'reasoning'"),
        ({"input": [{"role": "user"}]}, "input.0.content", "missing"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
            "input_text",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "1"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    client: httpx.Client, changes: dict[str, object], param: str | None, said: str
) -> None:
    answer = client.post("/v1/responses", json={"model": CHAT_MODEL, "input": "Hello"} | changes)
    found = answer.json()["error"]
    assert (answer.status_code, found["code"], found["param"]) == (400, "invalid_request", param)
    assert said in found["message"]
    assert client.get("/v1/jobs").json()["data"] == []


def test_null_is_as_good_as_absent(client: httpx.Client, worker: StandInWorker) -> None:
    nulls = dict.fromkeys(("conversation", "prompt", "tools", "temperature", "reasoning", "truncation", "metadata"))
    with worker.answering(generated("Hello")):
        answer = client.post("/v1/responses", json={"model": CHAT_MODEL, "input": "Hello", **nulls})
    assert (answer.status_code, answer.json()["temperature"]) == (200, 1.0)
