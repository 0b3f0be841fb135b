"""The clerk beside the requests: which batches it takes, and what it does when something goes wrong."""

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.batches import clerk
from api.batches.clerk import Clerk
from api.batches.drive import Drive
from tandem.batch import Batch
from tandem.batch_store import BatchStore
from tandem.errors import QueueUnavailable
from tandem.job_store import Share
from tandem.services import Services
from tandem.settings import Settings

SOON = 30.0
POLL_SECONDS = 0.02
SHORT_LEASE_SECONDS = 0.2
"""Until a batch that is left after an error is taken again."""
OWNER = "a"
CHAT = "/v1/chat/completions"


@pytest.fixture
def services(valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    monkeypatch.setattr(clerk, "POLL_SECONDS", POLL_SECONDS)
    monkeypatch.setattr(clerk, "AWAY_SECONDS", POLL_SECONDS)
    services = Services.connect(Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}"))
    yield services
    services.jobs.close()


def create(services: Services, text: str = "{") -> Batch:
    """A batch; its file is faulty unless another one is given, so that it fails at once."""
    file = services.files.create([text.encode()], filename="r", purpose="batch", owner=OWNER, limit=10**6)
    return services.batches.create(owner=OWNER, share=Share(), endpoint=CHAT, file=file, completion_window="24h")


def drive_until(services: Services, batch: Batch, status: str) -> Batch:
    """With a clerk at work until then."""

    async def watch() -> Batch:
        give_up_at = time.monotonic() + SOON
        async with Clerk(services).at_work():
            while (seen := services.batches.get(batch.id, OWNER)).status != status:
                assert time.monotonic() < give_up_at, seen
                await asyncio.sleep(POLL_SECONDS)  # records have no event
        return seen

    return asyncio.run(watch())


def fails(times: int, error: Exception, then: Any) -> Any:
    """In place of the method `then`: raises the error so many times, and goes on with it."""
    left = [error] * times

    def call(*arguments: Any) -> Any:
        if left:
            raise left.pop()
        return then(*arguments)

    return call


def test_a_new_batch_is_taken(services: Services) -> None:
    assert drive_until(services, create(services), "failed").errors[0].code == "invalid_json_line"


def test_a_stopping_clerk_gives_its_batches_back(services: Services) -> None:
    """Another one goes on at once, and need not wait for the lease's end."""
    body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "a"}]}
    row = json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": body})
    batch = drive_until(services, create(services, row), "in_progress")
    again = services.batches.take(1.0)
    assert again is not None
    assert again.id == batch.id


def test_a_queue_that_is_away_is_said_once(
    services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(BatchStore, "take", fails(3, QueueUnavailable("away"), BatchStore.take))
    drive_until(services, create(services), "failed")
    told = [record.message for record in caplog.records if record.name == "api.batches.clerk"]
    assert told == ["batches wait: away", "batches go on: the queue answers again"]


def test_an_unforeseen_error_is_met_again_by_the_next_clerk(
    services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clerk, "LEASE_SECONDS", SHORT_LEASE_SECONDS)
    monkeypatch.setattr(Drive, "step", fails(clerk.TRIES - 1, ZeroDivisionError("bad"), Drive.step))
    batch = drive_until(services, create(services), "failed")
    assert batch.errors[0].code == "invalid_json_line"
    assert batch.troubles == clerk.TRIES - 1
    assert "met an unforeseen error" in caplog.text


def test_an_error_that_stays_fails_the_batch(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clerk, "LEASE_SECONDS", SHORT_LEASE_SECONDS)
    monkeypatch.setattr(Drive, "step", fails(clerk.TRIES, ZeroDivisionError("bad"), Drive.step))
    (error,) = drive_until(services, create(services), "failed").errors
    assert (error.code, error.message) == ("internal_error", "ZeroDivisionError: bad")


def test_a_batch_whose_file_is_gone_fails_at_once(services: Services) -> None:
    batch = create(services)
    services.artifacts.discard(batch.input_digest, older_than=float("inf"))
    (error,) = drive_until(services, batch, "failed").errors
    assert error.code == "artifact_not_found"
