"""Webhooks from end to end: jobs end in the real store, real receivers are told."""

import asyncio
import base64
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from openai import OpenAI

from tandem.artifacts import ArtifactStore
from tandem.errors import OutOfMemory
from tandem.job import Failure, Job, JobState
from tandem.job_store import EndState, JobStore
from tandem.settings import Settings
from tandem.specs import Scheduling, Webhook
from tandem.webhooks.addresses import AddressRules
from tandem.webhooks.deliverer import Deliverer
from tandem.webhooks.job_outbox import JobOutbox
from tandem.webhooks.sender import Sender
from tandem.webhooks.signature import Signer
from tests.unit.webhooks.receiver import Receiver, serving, status
from tests.valkey_server import ValkeyServer

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
LANE = "tandem.inference.m"
SOON = 20.0
"""Seconds until a test gives up."""
POLL_SECONDS = 0.01
"""Nothing tells that a note was written."""
END_STATES: tuple[EndState, ...] = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


class Hook:
    """A user's receiver, and what it was told, as it comes."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.arrivals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.answer = status(204)
        receiver.answering = self._answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.receiver.port}/hook"

    def wait(self) -> None:
        """Until one more message has been answered."""
        self.arrivals.get(timeout=SOON)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.answer(handler)
        self.arrivals.put(None)


@pytest.fixture
def hook() -> Iterator[Hook]:
    with serving() as receiver:
        yield Hook(receiver)


@pytest.fixture
def jobs(valkey_url: str, tmp_path: Path) -> Iterator[JobStore]:
    yield from store_of(valkey_url, tmp_path)


def store_of(url: str, folder: Path) -> Iterator[JobStore]:
    settings = Settings(redis_url=url, artifacts_url=f"file://{folder}/artifacts")
    store = JobStore(settings, ArtifactStore(settings.artifacts_url))
    yield store
    store.close()


@contextmanager
def delivering(jobs: JobStore) -> Iterator[None]:
    """A deliverer at work, as in the API's process."""
    sender = Sender(AddressRules(allow_private=True))
    outbox = JobOutbox(jobs, Signer.of_setting(SECRET))
    loop = asyncio.new_event_loop()
    task = loop.create_task(Deliverer(outbox, sender).run())

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
        assert not task.done(), "the deliverer died"
    finally:
        if not task.done():
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        sender.close()


def submitted(jobs: JobStore, url: str | None, number: int = 0) -> str:
    when = Scheduling(webhook=None if url is None else Webhook(url=url), metadata={"order": str(number)})
    spec = {
        "kind": "inference",
        "task": "text-generation",
        "model": "m",
        "inputs": "the prompt",
        **when.model_dump(mode="json", exclude_defaults=True),
    }
    return jobs.submit(kind="inference", model="m", lane=LANE, owner="o", spec=spec, scheduling=when).job.id


def ended(
    jobs: JobStore, url: str | None, state: EndState = JobState.SUCCEEDED, failure: Failure | None = None
) -> str:
    job_id = submitted(jobs, url)
    claim = jobs.claim(LANE, "worker")
    assert claim is not None
    assert claim.job.id == job_id
    jobs.finish(job_id, claim.fence, state, result={"text": "the answer"}, failure=failure)
    return job_id


def settled(jobs: JobStore, job_id: str) -> Job:
    """The job when the outcome of a try is in its record: written just after the receiver has its message."""
    deadline = time.monotonic() + SOON
    while (job := jobs.get(job_id)).webhook_note is None:
        assert time.monotonic() < deadline, "the delivery was not settled in time"
        time.sleep(POLL_SECONDS)
    return job


def unwrapped(hook: Hook, place: int = 0) -> dict[str, object]:
    """The message, verified and read by the library that users of OpenAI have."""
    told = hook.receiver.told[place]
    with OpenAI(api_key="unused", webhook_secret=SECRET) as client:
        event = client.webhooks.unwrap(told.body, told.headers)
    return event.model_dump()


@pytest.mark.parametrize("state", END_STATES)
def test_every_end_of_a_job_is_told(jobs: JobStore, hook: Hook, state: EndState) -> None:
    failure = Failure.of(OutOfMemory()) if state is JobState.FAILED else None
    with delivering(jobs):
        job_id = ended(jobs, hook.url, state, failure)
        hook.wait()
        assert settled(jobs, job_id).webhook_note == "delivered 204"
    event = unwrapped(hook)
    data = event["data"]
    assert isinstance(data, dict)
    assert event["type"] == f"job.{state}"
    assert (data["id"], data["state"], data["metadata"]) == (job_id, state, {"order": "0"})
    assert (data["failure"] is not None) == (state is JobState.FAILED)
    assert "the answer" not in hook.receiver.told[0].body


def test_a_job_that_is_cancelled_before_it_ran_is_told(jobs: JobStore, hook: Hook) -> None:
    with delivering(jobs):
        job_id = submitted(jobs, hook.url)
        jobs.cancel(job_id)
        hook.wait()
    assert unwrapped(hook)["type"] == "job.cancelled"


def test_a_job_without_a_webhook_tells_nobody(jobs: JobStore, hook: Hook) -> None:
    with delivering(jobs):
        ended(jobs, None)
        told = ended(jobs, hook.url)
        hook.wait()
    assert [one.message_id for one in hook.receiver.told] == [f"msg_{told}"]


def test_a_failed_try_is_repeated_with_the_same_id(jobs: JobStore, hook: Hook) -> None:
    hook.answer = status(500)
    with delivering(jobs):
        job_id = ended(jobs, hook.url)
        hook.wait()
        assert settled(jobs, job_id).webhook_note == "try 1 of 10 failed: 500"
        hook.answer = status(200)
        hook.wait()
    assert [told.message_id for told in hook.receiver.told] == [f"msg_{job_id}"] * 2


def test_what_a_killed_process_had_taken_is_delivered_by_another(jobs: JobStore, hook: Hook) -> None:
    job_id = ended(jobs, hook.url)
    assert [due.job_id for due in jobs.take_webhooks(10, lease_seconds=0.5)] == [job_id]
    assert jobs.take_webhooks(10, lease_seconds=0.5) == [], "it is leased"
    with delivering(jobs):
        hook.wait()
        assert settled(jobs, job_id).webhook_note == "delivered 204"


def test_what_is_taken_and_not_tried_costs_no_try(jobs: JobStore, hook: Hook) -> None:
    """A message that waits behind its host's others past its lease is taken again: its ten tries are still ahead."""
    ended(jobs, hook.url)
    leased = 0.001
    for _ in range(3):
        (due,) = jobs.take_webhooks(10, lease_seconds=leased)
        assert due.deliveries == 0
        threading.Event().wait(leased * 2)


def test_several_processes_tell_each_job_once(jobs: JobStore, hook: Hook) -> None:
    count = 40
    with delivering(jobs), delivering(jobs), delivering(jobs):
        job_ids = [ended(jobs, hook.url) for _ in range(count)]
        for _ in job_ids:
            hook.wait()
        for job_id in job_ids:
            settled(jobs, job_id)
    assert sorted(told.message_id for told in hook.receiver.told) == sorted(f"msg_{job_id}" for job_id in job_ids)


def test_a_queue_server_that_restarts_loses_no_message(own_valkey: ValkeyServer, hook: Hook, tmp_path: Path) -> None:
    for jobs in store_of(own_valkey.url, tmp_path):
        job_id = ended(jobs, hook.url)
        own_valkey.sync()
        own_valkey.kill()
        with delivering(jobs):
            own_valkey.restart()
            hook.wait()
            assert settled(jobs, job_id).webhook_note == "delivered 204"
