"""The API: submit a job, follow it, fetch its result; ask by the OpenAI client; and what a refusal looks like.

The worker is played by the test, so that nothing is loaded: it takes the ticket and writes the result.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import SecretStr

from tandem.settings import ApiSettings
from tests.integration.api.api_server import API_KEY, client_of, serving
from tests.integration.api.sse import events_of
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker, generated

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
JOB = {"kind": "inference", "task": "text-generation", "model": CHAT_MODEL, "inputs": QUESTION}
ANSWER = generated("Paris is the capital of France.")


@pytest.fixture
def settings(valkey_url: str, tmp_path: Path) -> ApiSettings:
    return ApiSettings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}", api_key=SecretStr(API_KEY), port=0)


@pytest.fixture
def url(settings: ApiSettings) -> Iterator[str]:
    with serving(settings) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with client_of(url) as client:
        yield client


@pytest.fixture
def worker(settings: ApiSettings) -> Iterator[StandInWorker]:
    worker = StandInWorker(settings)
    yield worker
    worker.jobs.redis.close()


def test_a_job_is_accepted_at_once_and_says_where_it_is(client: httpx.Client) -> None:
    """202 means: it is kept, and it will be done. `Location` is where to look."""
    answer = client.post("/v1/jobs", json=JOB)
    assert answer.status_code == 202
    assert client.get(answer.headers["location"]).json()["state"] == "queued"


def test_a_job_is_followed_to_its_result(client: httpx.Client, worker: StandInWorker) -> None:
    """The event stream ends with the job; then the result is there, whole and for good."""
    job_id = client.post("/v1/jobs", json=JOB).json()["id"]
    with (
        worker.answering(ANSWER, "Paris is", " the capital of France."),
        client.stream("GET", f"/v1/jobs/{job_id}/events") as answer,
    ):
        events = list(events_of(answer))
    assert [event.data["state"] for event in events if event.type == "state"] == ["queued", "running", "succeeded"]
    assert "".join(event.data["text"] for event in events if event.type == "tokens") == ANSWER["generated_text"]
    assert client.get(f"/v1/jobs/{job_id}/result").json() == ANSWER


def test_sending_a_job_twice_with_a_key_makes_one_job(client: httpx.Client) -> None:
    """A client that does not know whether its request arrived sends it again with the same Idempotency-Key."""
    headers = {"Idempotency-Key": "question-1"}
    answers = [client.post("/v1/jobs", json=JOB, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 200]
    assert answers[0].json()["id"] == answers[1].json()["id"]


def test_the_openai_client_needs_nothing_but_the_address_and_the_key(url: str, worker: StandInWorker) -> None:
    """Its question is an ordinary job, waited for; `stream=True` gives the text while it is written."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY) as sdk:
        with worker.answering(ANSWER):
            whole = sdk.chat.completions.create(model=CHAT_MODEL, messages=QUESTION)
        with worker.answering(ANSWER, "Paris is", " the capital of France."):
            chunks = list(sdk.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, stream=True))
    assert whole.choices[0].message.content == ANSWER["generated_text"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER["generated_text"]


def test_a_bad_request_is_told_the_field_the_limit_and_a_code(client: httpx.Client) -> None:
    """Every error has this one shape. `code` is for programs, `message` for people, `param` is the field."""
    answer = client.post("/v1/jobs", json=JOB | {"parameters": {"temperature": 5}})
    assert answer.status_code == 400
    assert answer.json() == {
        "error": {
            "message": "`parameters.temperature`: Input should be less than or equal to 2",
            "type": "invalid_request_error",
            "param": "parameters.temperature",
            "code": "invalid_request",
        }
    }
