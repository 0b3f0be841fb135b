"""The unmodified OpenAI client, which checks the shape of every answer, against the synchronous doors."""

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tandem.errors import PromptTooLong
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker, generated

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


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


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_job_is_its_http_error(sdk: openai.OpenAI, worker: StandInWorker, stream: bool) -> None:
    """A stream is opened only when there is text: until then a failure still has its status."""
    with (
        worker.failing(PromptTooLong("5000 tokens do not fit 2048", param="inputs")),
        pytest.raises(openai.BadRequestError, match="5000 tokens") as caught,
    ):
        sdk.chat.completions.create(model=CHAT_MODEL, messages=HELLO, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


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


# The rest of the client


def test_files_and_models_work_through_the_client(sdk: openai.OpenAI) -> None:
    file = sdk.files.create(file=("rows.jsonl", b"{}\n"), purpose="batch")
    assert sdk.files.retrieve(file.id).filename == "rows.jsonl"
    assert [found.id for found in sdk.files.list(limit=1)] == [file.id]
    assert sdk.files.content(file.id).read() == b"{}\n"
    assert sdk.files.delete(file.id).deleted
    assert CHAT_MODEL in {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve(CHAT_MODEL).owned_by == "tandem"
