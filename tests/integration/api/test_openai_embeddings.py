"""`/v1/embeddings` through the unmodified OpenAI client, which checks the shape of every answer."""

import base64
import struct

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.integration.api.api_server import API_KEY
from tests.integration.api.stand_in_worker import CHAT_MODEL, EMBEDDING_MODEL, StandInWorker

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


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
        openai.OpenAI(base_url=f"{api_url}/v1", api_key=API_KEY, max_retries=0, timeout=30) as sdk,
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
