"""Responses that are streamed or made in the background, through the unmodified OpenAI client."""

import json

import openai
import pytest
from openai.types.responses import (
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseStreamEvent,
)

from tandem.errors import OutOfMemory, PromptTooLong
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker, generated
from tests.integration.api.weather import CALLED, TOOLS


def types(events: list[ResponseStreamEvent]) -> list[str]:
    return [event.type.removeprefix("response.") for event in events]


def test_a_stream_is_typed_events(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    with worker.answering(generated("Hello to you"), "Hello", " to"):
        events = list(sdk.responses.create(model=CHAT_MODEL, input="Hi", stream=True))
    assert types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(11))
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["Hello", " to", " you"]
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "Hello to you"
    assert last.response == sdk.responses.retrieve(last.response.id)


def test_the_clients_own_stream_puts_the_response_together(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    with (
        worker.answering(generated("Hello to you", "length"), "Hello"),
        sdk.responses.stream(model=CHAT_MODEL, input="Hi") as stream,
    ):
        kinds = {event.type for event in stream}
    assert "response.incomplete" in kinds
    with (
        worker.answering(generated("Hello to you"), "Hello"),
        sdk.responses.stream(model=CHAT_MODEL, input="Hi") as s,
    ):
        assert s.get_final_response().output_text == "Hello to you"


def test_the_arguments_of_a_call_are_streamed(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        begun = {"call": 0, "id": "call_1", "name": "get_weather", "arguments": ""}
        pieces = [begun, {"call": 0, "arguments": '{"city"'}, {"call": 0, "arguments": ': "Rome"}'}]
        worker.jobs.report(claim.job.id, claim.fence, [("tool_call", piece) for piece in pieces])
        worker.succeed(claim, CALLED)

    with worker.working(work):
        events = list(sdk.responses.create(model=CHAT_MODEL, input="Weather?", tools=TOOLS, stream=True))
    assert types(events)[2:] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    (arguments,) = [event.arguments for event in events if isinstance(event, ResponseFunctionCallArgumentsDoneEvent)]
    assert json.loads(arguments) == {"city": "Rome"}


def test_a_lost_attempt_does_not_show_in_the_stream(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    with worker.answering_again():
        events = list(sdk.responses.create(model=CHAT_MODEL, input="Hi", stream=True, temperature=0))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert deltas == ["Hello", " to", " you", " all"]


def test_a_job_that_fails_in_the_midst_of_its_stream_is_a_failed_response(
    sdk: openai.OpenAI, worker: StandInWorker
) -> None:
    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        worker.say(claim, "Hello")
        worker.fail(claim, OutOfMemory())

    with worker.working(work):
        *_, last = sdk.responses.create(model=CHAT_MODEL, input="Hi", stream=True)
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert (last.response.status, last.response.error.code) == ("failed", "server_error")


def test_a_response_in_the_background_is_polled(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    response = sdk.responses.create(model=CHAT_MODEL, input="Hi", background=True)
    assert (response.status, response.output) == ("queued", [])
    claim = worker.take()
    assert sdk.responses.retrieve(response.id).status == "in_progress"
    worker.succeed(claim, generated("Hello"))
    ended = sdk.responses.retrieve(response.id)
    assert (ended.status, ended.output_text, ended.background) == ("completed", "Hello", True)


def test_one_that_fails_says_why(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    response = sdk.responses.create(model=CHAT_MODEL, input="Hi", background=True)
    worker.fail(worker.take(), PromptTooLong("5000 tokens do not fit 2048"))
    ended = sdk.responses.retrieve(response.id)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "invalid_prompt")
    assert "5000 tokens" in ended.error.message


def test_a_queued_one_is_cancelled_at_once_and_a_running_one_within_the_call(
    sdk: openai.OpenAI, worker: StandInWorker
) -> None:
    queued = sdk.responses.create(model=CHAT_MODEL, input="Hi", background=True)
    assert sdk.responses.cancel(queued.id).status == "cancelled"
    running = sdk.responses.create(model=CHAT_MODEL, input="Hi", background=True)
    claim = worker.take()

    def work(worker: StandInWorker) -> None:
        while not worker.jobs.get(claim.job.id).cancel_requested:
            pass  # a real worker is nudged
        worker.stop(claim)

    with worker.working(work):
        assert sdk.responses.cancel(running.id).status == "cancelled"
    assert sdk.responses.cancel(running.id).status == "cancelled", "asked again it stays as it is"


def test_only_the_background_is_cancelled(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    with worker.answering(generated("Hello")):
        response = sdk.responses.create(model=CHAT_MODEL, input="Hello")
    with pytest.raises(openai.BadRequestError, match="background: true"):
        sdk.responses.cancel(response.id)


def test_a_stream_goes_on_where_it_was_left(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    stream = sdk.responses.create(model=CHAT_MODEL, input="Hi", background=True, stream=True)
    first = next(iter(stream))
    assert first.type == "response.created"
    stream.close()
    claim = worker.take()
    worker.say(claim, "Hello", " to")
    worker.succeed(claim, generated("Hello to you"))
    whole = list(sdk.responses.retrieve(first.response.id, stream=True))
    assert types(whole)[:3] == ["created", "queued", "in_progress"]
    assert types(whole)[-1] == "completed"
    for read in (0, 5):
        rest = list(sdk.responses.retrieve(first.response.id, stream=True, starting_after=read))
        assert rest == whole[read + 1 :]
    with sdk.responses.stream(response_id=first.response.id) as again:
        assert again.get_final_response().output_text == "Hello to you"
