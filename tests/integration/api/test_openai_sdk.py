"""The unmodified OpenAI client, which checks the shape of every answer, against the synchronous doors."""

import base64
import json
import struct
from collections.abc import Iterator

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tandem.errors import OutOfMemory, PromptTooLong
from tests.integration.api.api_server import API_KEY
from tests.integration.api.stand_in_worker import CHAT_MODEL, EMBEDDING_MODEL, StandInWorker, generated

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def sdk(api_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{api_url}/v1", api_key=API_KEY, max_retries=0, timeout=10, _strict_response_validation=True
    ) as sdk:
        yield sdk


# Chat


def test_parameters_that_change_no_answer_are_taken(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    """`null` is the same as nothing; labels become the job's."""
    specs = []

    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        specs.append(claim.job.spec)
        worker.succeed(claim, generated("x") | {"reused_tokens": 5})

    with worker.working(work):
        answer = sdk.chat.completions.create(
            model=CHAT_MODEL,
            messages=HELLO,
            metadata={"for": "a test"},
            store=False,
            safety_identifier="someone",
            prompt_cache_key="k",
            prediction={"type": "content", "content": "x"},
            modalities=["text"],
            service_tier="fast",
            extra_body={"temperature": None, "stop": None, "top_k": 5},
        )
    assert specs[0]["metadata"] == {"for": "a test"}
    assert (specs[0]["priority"], answer.service_tier) == ("high", "priority")
    assert (specs[0]["parameters"]["top_k"], specs[0]["parameters"]["temperature"]) == (5, 1.0)
    assert answer.system_fingerprint is not None
    assert answer.system_fingerprint.startswith("fp_")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 5


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


def test_a_first_question_is_answered(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    with worker.answering(generated("Hello to you")):
        answer = sdk.chat.completions.create(model=CHAT_MODEL, messages=HELLO)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Hello to you", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 3, 10)
    assert answer.model == CHAT_MODEL
    assert answer.id.startswith("chatcmpl-job_")


def test_the_parameters_reach_the_job(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    specs = []

    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        specs.append(claim.job.spec)
        worker.succeed(claim, generated("x", "length"))

    with worker.working(work):
        answer = sdk.chat.completions.create(
            model=CHAT_MODEL,
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            ],
            max_completion_tokens=5,
            temperature=0.5,
            top_p=0.9,
            seed=7,
            stop=["###", "END"],
            n=1,
            user="someone",
        )
    assert answer.choices[0].finish_reason == "length"
    assert specs[0]["inputs"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
    ]
    parameters = specs[0]["parameters"]
    assert parameters["max_new_tokens"] == 5
    assert (parameters["temperature"], parameters["top_p"], parameters["seed"]) == (0.5, 0.9, 7)
    assert parameters["stop"] == ["###", "END"]


def test_what_shapes_the_text_reaches_the_job_too(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    specs = []

    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        specs.append(claim.job.spec)
        worker.succeed(claim, generated("{}"))

    with worker.working(work):
        sdk.chat.completions.create(
            model=CHAT_MODEL,
            messages=HELLO,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            logit_bias={"11": -100},
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
            },
        )
    parameters = specs[0]["parameters"]
    assert (parameters["presence_penalty"], parameters["frequency_penalty"]) == (0.5, -0.5)
    assert parameters["logit_bias"] == {"11": -100.0}
    assert parameters["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_several_choices_come_with_the_log_probabilities_of_their_tokens(
    sdk: openai.OpenAI, worker: StandInWorker
) -> None:
    def text(word: str) -> dict[str, object]:
        token = {"token": word, "id": 5, "logprob": -0.5, "bytes": list(word.encode())}
        return {
            "generated_text": word,
            "finish_reason": "stop",
            "completion_tokens": 1,
            "logprobs": [{**token, "top_logprobs": [token]}],
        }

    result = {"choices": [text("yes"), text("no")], "prompt_tokens": 7, "completion_tokens": 2, "path": "engine"}
    with worker.answering(result):
        answer = sdk.chat.completions.create(
            model=CHAT_MODEL, messages=HELLO, n=2, seed=1, logprobs=True, top_logprobs=1
        )
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, "yes"), (1, "no")]
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    (told,) = logprobs.content
    assert (told.token, told.logprob, told.bytes) == ("no", -0.5, [110, 111])
    assert [top.token for top in told.top_logprobs] == ["no"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


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

    def work(worker: StandInWorker) -> None:
        lost = worker.take()
        worker.say(lost, "Hello", " to")
        worker.jobs.release(lost.job.id, lost.fence)
        again = worker.take()
        worker.say(again, "Hel", "lo to you", " all")
        worker.succeed(again, generated("Hello to you all"))

    with worker.working(work):
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


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_job_is_its_http_error(sdk: openai.OpenAI, worker: StandInWorker, stream: bool) -> None:
    """A stream is opened only when there is text: until then a failure still has its status."""
    with (
        worker.failing(PromptTooLong("5000 tokens do not fit 2048", param="inputs")),
        pytest.raises(openai.BadRequestError, match="5000 tokens") as caught,
    ):
        sdk.chat.completions.create(model=CHAT_MODEL, messages=HELLO, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


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


def test_an_unknown_model_and_a_wrong_key_are_their_exceptions(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.chat.completions.create(model="gpt-9", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as wrong:
        sdk.with_options(api_key="wrong").chat.completions.create(model=CHAT_MODEL, messages=HELLO)
    assert wrong.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"functions": []}, "functions", "unsupported parameter"),
        ({"audio": {}}, "audio", "unsupported parameter"),
        ({"store": True}, "store", "False"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "'none'"),
        ({"modalities": ["text", "audio"]}, "modalities.1", "'text'"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type", "'function'"),
        ({"tool_choice": "required"}, None, "there are no `tools`"),
        ({"top_logprobs": 2}, None, "needs `logprobs"),
        ({"n": 17}, "n", "16"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "100"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"temperature": 2.5}, "temperature", "2"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "'text'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"stop": ["x"] * 17}, "stop", "16"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, None, "give one"),
        ({"stream_options": {"include_usage": True}}, None, "stream: true"),
    ],
)
def test_a_chat_parameter_that_cannot_be_honoured_is_refused_by_name(
    client: httpx.Client, changes: dict[str, object], param: str | None, said: str
) -> None:
    answer = client.post("/v1/chat/completions", json={"model": CHAT_MODEL, "messages": HELLO} | changes)
    found = answer.json()["error"]
    assert (answer.status_code, found["code"], found["param"]) == (400, "invalid_request", param)
    assert said in found["message"]
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_repeated_chat_with_a_key_gets_the_first_answer(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    headers = {"Idempotency-Key": "question-1"}
    with worker.answering(generated("once")):
        first = sdk.chat.completions.create(model=CHAT_MODEL, messages=HELLO, extra_headers=headers)
    second = sdk.chat.completions.create(model=CHAT_MODEL, messages=HELLO, extra_headers=headers)
    assert (second.id, second.choices) == (first.id, first.choices)


# Embeddings


def test_embeddings_come_one_for_each_text(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    rows = [[0.5, -0.25, 0.125], [1.0, 0.0, -1.0]]
    with worker.answering({"rows": rows, "prompt_tokens": 9}, model=EMBEDDING_MODEL):
        answer = sdk.embeddings.create(
            model=EMBEDDING_MODEL, input=["a red apple", "a ripe fruit"], encoding_format="float"
        )
    assert [item.embedding for item in answer.data] == rows
    assert [item.index for item in answer.data] == [0, 1]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (9, 9)


def test_the_client_unpacks_the_base64_that_it_asks_for_by_itself(api_url: str, worker: StandInWorker) -> None:
    """Not with the strict client: it checks the base64 text as if it were the vector, before it unpacks it."""
    with (
        openai.OpenAI(base_url=f"{api_url}/v1", api_key=API_KEY, max_retries=0, timeout=10) as sdk,
        worker.answering({"rows": [[0.5, -0.25]], "prompt_tokens": 3}, model=EMBEDDING_MODEL),
    ):
        answer = sdk.embeddings.create(model=EMBEDDING_MODEL, input="a red apple")
    assert list(answer.data[0].embedding) == [0.5, -0.25]


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_a_single_text_has_a_list_of_one_in_either_encoding(
    client: httpx.Client, worker: StandInWorker, encoding: str
) -> None:
    with worker.answering({"rows": [[0.5, -2.0]], "prompt_tokens": 3}, model=EMBEDDING_MODEL):
        answer = client.post(
            "/v1/embeddings", json={"model": EMBEDDING_MODEL, "input": "a", "encoding_format": encoding}
        )
    (item,) = answer.json()["data"]
    vector = item["embedding"]
    if encoding == "base64":
        vector = list(struct.unpack("<2f", base64.b64decode(vector)))
    assert vector == [0.5, -2.0]
    assert client.get(f"/v1/jobs/{answer.headers['x-tandem-job']}").json()["state"] == "succeeded"


def test_shorter_vectors_have_length_1_again(sdk: openai.OpenAI, worker: StandInWorker) -> None:
    with worker.answering({"rows": [[0.6, 0.0, 0.8]], "prompt_tokens": 3}, model=EMBEDDING_MODEL):
        answer = sdk.embeddings.create(model=EMBEDDING_MODEL, input="a", dimensions=2, encoding_format="float")
    assert answer.data[0].embedding == [1.0, 0.0]
    with (
        worker.answering({"rows": [[0.6, 0.8]], "prompt_tokens": 3}, model=EMBEDDING_MODEL),
        pytest.raises(openai.BadRequestError, match="vectors have 2") as caught,
    ):
        sdk.embeddings.create(model=EMBEDDING_MODEL, input="a", dimensions=3, encoding_format="float")
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"dimensions": 0}, "dimensions", "1"),
        ({"input": [1, -2, 3]}, "input.1", "0"),
        ({"input": [[1, 2], []]}, "input.1", "at least 1"),
        ({"input": []}, "input", "at least 1"),
        ({"input": ""}, "input", "at least 1"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"encoding_format": "hex"}, "encoding_format", "'base64'"),
    ],
)
def test_an_embedding_parameter_that_cannot_be_honoured_is_refused_by_name(
    client: httpx.Client, changes: dict[str, object], param: str, said: str
) -> None:
    answer = client.post("/v1/embeddings", json={"model": EMBEDDING_MODEL, "input": "a"} | changes)
    found = answer.json()["error"]
    assert (answer.status_code, found["code"], found["param"]) == (400, "invalid_request", param)
    assert said in found["message"]


def test_embeddings_of_a_model_that_has_none_are_refused(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.embeddings.create(model=CHAT_MODEL, input="a")
    assert caught.value.code == "task_not_supported"


# The rest of the client


def test_files_and_models_work_through_the_client(sdk: openai.OpenAI) -> None:
    file = sdk.files.create(file=("rows.jsonl", b"{}\n"), purpose="batch")
    assert sdk.files.retrieve(file.id).filename == "rows.jsonl"
    assert [found.id for found in sdk.files.list(limit=1)] == [file.id]
    assert sdk.files.content(file.id).read() == b"{}\n"
    assert sdk.files.delete(file.id).deleted
    assert CHAT_MODEL in {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve(CHAT_MODEL).owned_by == "tandem"
