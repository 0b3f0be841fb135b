"""`kill -9` and SIGTERM of a worker in the midst of its work: the supervisor restarts it, and every job ends once."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tandem import JobHandle, Tandem
from tandem.embedded import UpOptions
from tandem.embedded_service import EmbeddedService
from tandem.job import JobState
from tandem.services import Services
from tandem.settings import Settings

pytestmark = pytest.mark.timeout(900)
"""Seconds; a worker's restart imports torch, and everything is done again."""

CHAT = "smollm2-135m-instruct"
INFERENCE_JOBS = 12
TRAINING_STEPS = 4
DRAINED_STEPS = 8
"""Enough for the signal to come before the end."""
BATCH_ROWS = 100
"""Several seconds of work: the batch is far from its end when it is seen to run."""
POLL_SECONDS = 0.05
PATIENCE_SECONDS = 240.0
"""For a worker's restart and everything again, on two busy cores."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    """A service of its own with a short lease, so that a lost attempt is taken back within seconds."""
    home = tmp_path_factory.mktemp("killed") / "home"
    options = UpOptions(home=home, port=0, flower=False)
    with EmbeddedService.start(options, environment={"TANDEM_LEASE_SECONDS": "3"}) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: EmbeddedService) -> Iterator[Tandem]:
    with Tandem(service.api_url, service.api_key) as client:
        yield client


def ask(client: Tandem, number: int) -> JobHandle:
    message = {"role": "user", "content": f"What is {number} plus {number}?"}
    return client.submit("text-generation", [message], model=CHAT, parameters={"max_new_tokens": 40}, stream=True)


def wait_for(job: JobHandle, event_type: str) -> None:
    next(event for event in job.events(timeout=PATIENCE_SECONDS) if event.type == event_type)


def end_states(job: JobHandle) -> list[str]:
    """Every terminal state that the job's stream ever told of."""
    states = [event.data["state"] for event in job.events(timeout=PATIENCE_SECONDS) if event.type == "state"]
    return [state for state in states if JobState(state).is_terminal]


def test_every_job_ends_once_with_one_result(client: Tandem, service: EmbeddedService, tmp_path: Path) -> None:
    """12 inference jobs and one training are running when their worker is killed; none is lost, none ends twice."""
    rows = [{"prompt": f"{number} is", "completion": f" the number {number}."} for number in range(32)]
    training = client.finetune(
        CHAT, rows, suffix="killed", hyperparameters={"max_steps": TRAINING_STEPS, "batch_size": 2, "max_tokens": 32}
    )
    wait_for(training, "metrics")
    jobs = [ask(client, number) for number in range(INFERENCE_JOBS)]
    wait_for(jobs[0], "tokens")

    os.kill(service.pid_of("worker-1"), signal.SIGKILL)

    results = [job.wait(timeout=PATIENCE_SECONDS) for job in jobs]
    adapter = training.wait(timeout=PATIENCE_SECONDS)["adapter"]
    attempts = {job.id: job.refresh().attempt for job in [*jobs, training]}
    assert all(result["generated_text"] for result in results)
    assert [end_states(job) for job in [*jobs, training]] == [["succeeded"]] * (INFERENCE_JOBS + 1)
    assert attempts[training.id] == 2, "the training was running when its worker died"
    assert max(attempts.values()) == 2
    assert [found.id for found in client.adapters() if found.job_id == training.id] == [adapter]


def test_a_batch_ends_with_every_row_once(service: EmbeddedService) -> None:
    """Its worker is killed in the midst: what was saved is kept, the rest is done again, and no row comes twice."""
    with openai.OpenAI(base_url=f"{service.api_url}/v1", api_key=service.api_key) as sdk:
        rows = "\n".join(json.dumps(batch_line(number)) for number in range(BATCH_ROWS))
        file = sdk.files.create(file=("rows.jsonl", rows.encode()), purpose="batch")
        batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        wait_for_batch(sdk, batch.id, lambda seen: seen.request_counts.completed > 0)

        os.kill(service.pid_of("worker-1"), signal.SIGKILL)

        batch = wait_for_batch(sdk, batch.id, lambda seen: seen.status not in ("in_progress", "finalizing"))
        assert (batch.status, batch.request_counts.completed) == ("completed", BATCH_ROWS)
        answered = [json.loads(line) for line in sdk.files.content(batch.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in answered] == [f"row-{number}" for number in range(BATCH_ROWS)]
    assert attempts_of_shards(service, batch.id) == 2


def batch_line(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is {number} plus {number}?"}]
    body = {"model": CHAT, "messages": messages, "max_tokens": 8}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def wait_for_batch(sdk: openai.OpenAI, batch_id: str, is_so: Any) -> Any:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not is_so(batch := sdk.batches.retrieve(batch_id)):
        assert time.monotonic() < give_up_at, batch
        time.sleep(POLL_SECONDS)  # batches have no events
    return batch


def attempts_of_shards(service: EmbeddedService, batch_id: str) -> int:
    """The most attempts that a shard of the batch took."""
    services = Services.connect(
        Settings(redis_url=service.redis_url, artifacts_url=f"file://{service.home.artifacts}")
    )
    try:
        shards = services.jobs.list(kind="batch", limit=100)
    finally:
        services.jobs.close()
    return max(job.attempt for job in shards if job.spec["batch"] == batch_id)


def test_a_drained_worker_gives_its_jobs_back_uncharged(client: Tandem, service: EmbeddedService) -> None:
    """SIGTERM to the worker alone: what it runs ends within the grace, or goes on with its successor."""
    jobs = [ask(client, 100 + number) for number in range(8)]
    wait_for(jobs[0], "tokens")
    os.kill(service.pid_of("worker-1"), signal.SIGTERM)
    jobs += [ask(client, 200 + number) for number in range(4)]
    assert all(job.wait(timeout=PATIENCE_SECONDS)["generated_text"] for job in jobs)
    assert [end_states(job) for job in jobs] == [["succeeded"]] * len(jobs)


def test_a_drained_training_ends_with_the_same_weights(client: Tandem, service: EmbeddedService) -> None:
    """SIGTERM in mid-training: its checkpoint goes through the artifact store and the record to the next worker, and
    the adapter's file is the one of a training that nobody interrupted, byte for byte."""
    rows = [{"prompt": f"{number} and one is", "completion": f" {number + 1}."} for number in range(32)]
    hyperparameters = {"max_steps": DRAINED_STEPS, "batch_size": 2, "max_tokens": 32}
    undisturbed = client.finetune(CHAT, rows, suffix="undisturbed", hyperparameters=hyperparameters)
    undisturbed.wait(timeout=PATIENCE_SECONDS)

    drained = client.finetune(CHAT, rows, suffix="drained", hyperparameters=hyperparameters)
    wait_for(drained, "metrics")
    os.kill(service.pid_of("worker-1"), signal.SIGTERM)
    drained.wait(timeout=PATIENCE_SECONDS)

    record = drained.refresh()
    assert (record.attempt, record.crashes) == (2, 0)
    events = [event.type for event in drained.events(timeout=PATIENCE_SECONDS)]
    assert (events.count("checkpoint"), events.count("resumed")) == (1, 1)
    assert end_states(drained) == ["succeeded"]
    assert weights_of(service, drained) == weights_of(service, undisturbed)


def weights_of(service: EmbeddedService, training: JobHandle) -> str:
    """The SHA-256 of a training's adapter."""
    settings = Settings(redis_url=service.redis_url, artifacts_url=f"file://{service.home.artifacts}")
    services = Services.connect(settings)
    try:
        (adapter,) = (manifest for manifest in services.adapters.list() if manifest.job_id == training.id)
    finally:
        services.jobs.close()
    return adapter.files["adapter_model.safetensors"]
