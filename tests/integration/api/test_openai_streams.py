"""Chats that are streamed, through the unmodified OpenAI client, which checks the shape of every chunk."""

import json

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tandem.errors import OutOfMemory
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker, generated

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


def test_a_stream_tells_the_log_probabilities_of_its_tokens(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    """Each token once, also after a lost attempt, and that of the end, which has no text."""

    def told(word: str) -> dict[str, object]:
        token = {"token": word, "id": 5, "logprob": -0.5, "bytes": list(word.encode())}
        return {**token, "top_logprobs": [token]}

    def work(worker: StandInWorker) -> None:
        lost = worker.take()
        worker.jobs.report(lost.job.id, lost.fence, [("tokens", {"text": "a", "logprobs": [told("a")]})])
        worker.jobs.release(lost.job.id, lost.fence)
        again = worker.take()
        pieces = [("a", [told("a")]), ("bc", [told("b"), told("c")])]
        for text, logprobs in pieces:
            worker.jobs.report(again.job.id, again.fence, [("tokens", {"text": text, "logprobs": logprobs})])
        worker.succeed(again, generated("abc") | {"logprobs": [told(word) for word in ("a", "b", "c", "<end>")]})

    with worker.working(work):
        chunks = list(
            sdk.chat.completions.create(
                model=CHAT_MODEL, messages=HELLO, stream=True, logprobs=True, top_logprobs=1, temperature=0
            )
        )
    found = [
        told.token
        for chunk in chunks
        if (logprobs := chunk.choices[0].logprobs) is not None
        for told in logprobs.content or ()
    ]
    assert found == ["a", "b", "c", "<end>"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "abc"


def test_usage_is_null_in_all_chunks_but_the_last_if_it_was_asked_for(
    client: httpx.Client, worker: StandInWorker
) -> None:
    request = {"model": CHAT_MODEL, "messages": HELLO, "stream": True}
    found = []
    for options in ({}, {"stream_options": {"include_usage": True}}):
        with worker.answering(generated("Hi"), "Hi"):
            answer = client.post("/v1/chat/completions", json=request | options)
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
        found.append([json.loads(line) for line in lines])
    plain, counted = found
    assert all("usage" not in chunk for chunk in plain)
    assert [chunk["usage"] for chunk in counted[:-1]] == [None] * len(plain)
    assert counted[-1]["usage"]["total_tokens"] == 8


def test_a_stream_of_several_choices_tells_them_apart(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        for index, piece in ((0, "a"), (1, "x"), (0, "b"), (1, "y")):
            worker.jobs.report(claim.job.id, claim.fence, [("tokens", {"text": piece, "index": index})])
        texts = [{"generated_text": text, "finish_reason": "stop", "completion_tokens": 2} for text in ("ab", "xyz")]
        worker.succeed(claim, {"choices": texts, "prompt_tokens": 7, "completion_tokens": 4, "path": "engine"})

    written = ["", ""]
    with worker.working(work):
        for chunk in sdk.chat.completions.create(model=CHAT_MODEL, messages=HELLO, n=2, seed=1, stream=True):
            for choice in chunk.choices:
                written[choice.index] += choice.delta.content or ""
    assert written == ["ab", "xyz"], "the end of the second is in the result only"


def test_a_stream_gives_the_text_piece_by_piece(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    with worker.answering(generated("Hello to you"), "Hello", " to", " you"):
        chunks = list(
            sdk.chat.completions.create(
                model=CHAT_MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
        )
    *text, last = chunks
    assert text[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in text[1:-1]] == ["Hello", " to", " you"]
    assert text[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 10
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_usage_ends_with_the_reason(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    with worker.answering(generated("Hi"), "Hi"):
        chunks = list(sdk.chat.completions.create(model=CHAT_MODEL, messages=HELLO, stream=True))
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_an_empty_answer_is_a_stream_too(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    with worker.answering(generated("")):
        chunks = list(sdk.chat.completions.create(model=CHAT_MODEL, messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_lost_attempt_does_not_show_in_the_stream(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    """The next attempt writes the same text again; what was sent is not sent twice."""

    with worker.answering_again():
        chunks = list(sdk.chat.completions.create(model=CHAT_MODEL, messages=HELLO, stream=True, temperature=0))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert pieces == ["Hello", " to", " you", " all"]


def test_a_lost_attempt_that_is_followed_by_another_text_ends_the_stream(
    sdk: openai.OpenAI, worker: StandInWorker
) -> None:
    def work(worker: StandInWorker) -> None:
        lost = worker.take()
        worker.say(lost, "Hello")
        worker.jobs.release(lost.job.id, lost.fence)
        again = worker.take()
        worker.say(again, "Goodbye")
        worker.succeed(again, generated("Goodbye"))

    with worker.working(work), pytest.raises(openai.APIError, match="another text") as caught:
        list(sdk.chat.completions.create(model=CHAT_MODEL, messages=HELLO, stream=True))
    assert caught.value.code == "worker_lost"


def test_a_job_that_fails_in_the_midst_of_its_stream_ends_it_in_an_error(
    sdk: openai.OpenAI, worker: StandInWorker
) -> None:
    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        worker.say(claim, "Hello")
        worker.fail(claim, OutOfMemory())

    with worker.working(work), pytest.raises(openai.APIError) as caught:
        list(sdk.chat.completions.create(model=CHAT_MODEL, messages=HELLO, stream=True))
    assert caught.value.code == "out_of_memory"
