"""A fine-tuning job from the upload to an answer of its model: OpenAI's client on a whole running service."""

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from tandem.embedded_service import EmbeddedService

CHAT = "smollm2-135m-instruct"
ROWS = [
    {"messages": [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": word}]}
    for word in ("ahoy", "hello", "welcome", "goodbye")
]
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say ahoy."}]
HYPERPARAMETERS: Any = {"n_epochs": 2, "batch_size": 2, "save_steps": 2}
"""The last one is ours, which the client's types do not know."""
SOON = 120.0
"""Seconds until the test gives up; the training takes a few."""
POLL_SECONDS = 0.1
"""OpenAI's client has nothing but polling."""
CSV_HEADER = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"


@pytest.fixture
def sdk(service: EmbeddedService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{service.api_url}/v1",
        api_key=service.api_key,
        max_retries=0,
        timeout=240,
        _strict_response_validation=True,
    ) as sdk:
        yield sdk


def ended(sdk: openai.OpenAI, job_id: str) -> FineTuningJob:
    deadline = time.monotonic() + SOON
    while (job := sdk.fine_tuning.jobs.retrieve(job_id)).finished_at is None:
        assert time.monotonic() < deadline, f"the job is {job.status} after {SOON:g} s"
        time.sleep(POLL_SECONDS)
    return job


def watched(sdk: openai.OpenAI, job_id: str) -> list[FineTuningJobEvent]:
    """All events, oldest first, collected while the job runs as a user of the client does."""
    ended(sdk, job_id)
    return list(sdk.fine_tuning.jobs.list_events(job_id, limit=5))[::-1]


def test_a_model_is_trained_watched_asked_and_deleted(sdk: openai.OpenAI) -> None:
    content = "\n".join(json.dumps(row) for row in ROWS).encode()
    training_file = sdk.files.create(file=("greetings.jsonl", content), purpose="fine-tune").id
    job = sdk.fine_tuning.jobs.create(
        model=CHAT,
        training_file=training_file,
        validation_file=training_file,
        suffix="greetings",
        method={"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},
        extra_body={"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}, "publish_checkpoints": True},
    )
    events = watched(sdk, job.id)
    done = sdk.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.error) == ("succeeded", None)
    assert done.trained_tokens is not None
    assert done.trained_tokens > 0
    messages = [event.message for event in events]
    assert messages[0] == f"Created fine-tuning job: {job.id}"
    assert messages[-1] == f"New fine-tuned model created: {done.fine_tuned_model}"
    assert sum(message.startswith(f"Step {step}/4: training loss=") for message in messages for step in range(5)) == 4
    assert any(message.startswith("Step 4/4: validation loss=") for message in messages)

    metrics = sdk.files.content(done.result_files[0]).text.splitlines()
    assert metrics[0] == CSV_HEADER
    assert [row.split(",")[0] for row in metrics[1:]][-1] == "4"

    model = done.fine_tuned_model
    assert model is not None
    assert model.startswith(f"ft:{CHAT}:")
    assert ":greetings:" in model
    checkpoint = list(sdk.fine_tuning.jobs.checkpoints.list(job.id))[-1]
    assert (checkpoint.step_number, checkpoint.metrics.step) == (2, 2)
    assert checkpoint.metrics.train_loss is not None
    for name in (model, checkpoint.fine_tuned_model_checkpoint):
        answer = sdk.chat.completions.create(model=name, messages=QUESTION, max_tokens=4)
        assert answer.model == name
        assert answer.choices[0].message.content
    assert sdk.models.retrieve(model).id == model
    assert sdk.models.delete(model).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model=model, messages=QUESTION, max_tokens=4)
