"""Delivering what is due: with real receivers, over a store in memory."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from tandem.webhooks import deliverer as deliverer_module
from tandem.webhooks.addresses import AddressRules
from tandem.webhooks.deliverer import Deliverer
from tandem.webhooks.job_outbox import JobOutbox
from tandem.webhooks.outbox import Message
from tandem.webhooks.schedule import TRIES
from tandem.webhooks.sender import Answer, Sender
from tandem.webhooks.signature import Signer
from tests.unit.webhooks.jobs import ended_job
from tests.unit.webhooks.names import Names
from tests.unit.webhooks.receiver import Receiver, serving, status
from tests.unit.webhooks.webhook_jobs import Settled, WebhookJobs

SOON = 30.0
"""Seconds until a test gives up: far more than any delivery here takes on two busy cores."""


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliverer_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(deliverer_module, "AWAY_SECONDS", 0.02)


@pytest.fixture
def jobs(signer: Signer) -> WebhookJobs:
    return WebhookJobs(signer)


@pytest.fixture
def sender() -> Iterator[Sender]:
    sender = Sender(AddressRules(allow_private=True), resolver=Names(["127.0.0.1"]))
    yield sender
    sender.close()


@contextmanager
def delivering(jobs: WebhookJobs, sender: Sender) -> Iterator[None]:
    """A deliverer at work on an event loop of its own, cancelled when the block ends, as the API does."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(Deliverer(JobOutbox(jobs, jobs.signer), sender).run())

    def run() -> None:
        try:
            with pytest.raises(asyncio.CancelledError):
                loop.run_until_complete(task)
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
        assert not task.done(), "the deliverer died"
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def url_of(receiver: Receiver, host: str = "receiver.example") -> str:
    return f"http://{host}:{receiver.port}/hook"


def first_notes(jobs: WebhookJobs, *job_ids: str) -> dict[str, str]:
    """How the first try of each job was settled; further tries may come between."""
    notes: dict[str, str] = {}
    while set(notes) != set(job_ids):
        settled = jobs.settled.get(timeout=SOON)
        notes.setdefault(settled.job_id, settled.note)
    return notes


def wait_until(condition: threading.Event) -> None:
    assert condition.wait(SOON), "it did not happen in time"


def test_a_message_is_delivered_once_and_then_over(jobs: WebhookJobs, sender: Sender, receiver: Receiver) -> None:
    jobs.add(ended_job("job_1", url_of(receiver)))
    with delivering(jobs, sender):
        assert jobs.settled.get(timeout=SOON) == Settled("job_1", None, "delivered 200")
    assert [told.message_id for told in receiver.told] == ["msg_job_1"]
    assert jobs.open == 0


def test_a_job_that_ends_while_nothing_is_due_is_noticed(
    jobs: WebhookJobs, sender: Sender, receiver: Receiver
) -> None:
    with delivering(jobs, sender):
        jobs.add(ended_job("job_1", url_of(receiver)))
        assert jobs.settled.get(timeout=SOON).note == "delivered 200"
        jobs.add(ended_job("job_2", url_of(receiver)))
        assert jobs.settled.get(timeout=SOON).job_id == "job_2"


def test_a_failed_message_is_tried_again_under_the_same_id_and_given_up_after_the_last_try(
    jobs: WebhookJobs, sender: Sender, receiver: Receiver
) -> None:
    receiver.answering = status(500)
    jobs.add(ended_job("job_1", url_of(receiver)))
    with delivering(jobs, sender):
        settled = [jobs.settled.get(timeout=SOON) for _ in range(TRIES)]
    pauses = [one.retry_in for one in settled]
    assert pauses[0] == pytest.approx(5.0, rel=0.11)
    assert pauses[-1] is None
    assert all(pause is not None for pause in pauses[:-1])
    assert settled[0].note == "try 1 of 10 failed: 500"
    assert settled[-1].note == "given up after 10 tries: 500"
    assert [told.message_id for told in receiver.told] == ["msg_job_1"] * TRIES
    assert len({told.body for told in receiver.told}) == 1


def test_a_receiver_that_is_gone_is_never_asked_again(jobs: WebhookJobs, sender: Sender, receiver: Receiver) -> None:
    receiver.answering = status(410)
    jobs.add(ended_job("job_1", url_of(receiver)))
    with delivering(jobs, sender):
        settled = jobs.settled.get(timeout=SOON)
    assert settled == Settled("job_1", None, "stopped after try 1: the receiver answered 410 Gone")
    assert len(receiver.told) == 1


def test_a_receiver_is_left_alone_as_long_as_it_asks(jobs: WebhookJobs, sender: Sender, receiver: Receiver) -> None:
    receiver.answering = status(503, Retry_After="77")
    jobs.add(ended_job("job_1", url_of(receiver)))
    with delivering(jobs, sender):
        assert jobs.settled.get(timeout=SOON).retry_in == 77.0


def test_a_receiver_that_hangs_holds_up_its_own_messages_alone(
    jobs: WebhookJobs, sender: Sender, receiver: Receiver
) -> None:
    with serving() as slow:
        slow.answering = slow.hang
        jobs.add(*(ended_job(f"job_slow_{number}", url_of(slow, "slow.example")) for number in range(100)))
        jobs.add(*(ended_job(f"job_{number}", url_of(receiver)) for number in range(20)))
        with delivering(jobs, sender):
            settled = {jobs.settled.get(timeout=SOON).job_id for _ in range(20)}
            assert settled == {f"job_{number}" for number in range(20)}
            assert len(slow.told) <= deliverer_module.RUNNING_PER_HOST
            slow.released.set()


def test_one_host_gets_a_few_messages_at_the_same_time_and_no_more(
    jobs: WebhookJobs, sender: Sender, receiver: Receiver
) -> None:
    lock = threading.Lock()
    running, most = 0, 0

    def count(handler: BaseHTTPRequestHandler) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        receiver.released.wait(0.02)
        with lock:
            running -= 1
        status(200)(handler)

    receiver.answering = count
    jobs.add(*(ended_job(f"job_{number}", url_of(receiver)) for number in range(20)))
    with delivering(jobs, sender):
        assert {jobs.settled.get(timeout=SOON).note for _ in range(20)} == {"delivered 200"}
    assert most == deliverer_module.RUNNING_PER_HOST


def test_a_job_that_is_forgotten_is_not_settled(jobs: WebhookJobs, sender: Sender, receiver: Receiver) -> None:
    jobs.add(ended_job("job_1", url_of(receiver)), ended_job("job_2", url_of(receiver)))
    jobs.forget("job_1")
    with delivering(jobs, sender):
        assert jobs.settled.get(timeout=SOON).job_id == "job_2"
    assert [told.message_id for told in receiver.told] == ["msg_job_2"]
    assert jobs.settled.empty()


def test_a_record_that_cannot_be_told_counts_as_a_failed_try_and_stops_nothing(
    jobs: WebhookJobs, sender: Sender, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.add(ended_job("job_1", url_of(receiver), finished_at=None), ended_job("job_2", url_of(receiver)))
    with delivering(jobs, sender):
        settled = first_notes(jobs, "job_1", "job_2")
    assert settled["job_1"] == "try 1 of 10 failed: the message cannot be made: ValidationError"
    assert settled["job_2"] == "delivered 200"
    assert "webhook job_1 cannot be made" in caplog.text


def test_an_unforeseen_error_of_one_delivery_stops_no_other(
    jobs: WebhookJobs, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Sender):
        async def send(self, message: Message) -> Answer:
            if message.id == "msg_job_1":
                raise RuntimeError("a bug")
            return await super().send(message)

    jobs.add(ended_job("job_1", url_of(receiver)), ended_job("job_2", url_of(receiver)))
    with delivering(jobs, Broken(AddressRules(allow_private=True), resolver=Names(["127.0.0.1"]))):
        settled = first_notes(jobs, "job_1", "job_2")
    assert settled == {"job_1": "try 1 of 10 failed: internal error: RuntimeError", "job_2": "delivered 200"}
    assert "a bug" in caplog.text


def test_an_absent_queue_is_waited_for_and_told_once(
    jobs: WebhookJobs, sender: Sender, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.away = True
    jobs.add(ended_job("job_1", url_of(receiver)))
    with caplog.at_level(logging.WARNING), delivering(jobs, sender):
        for _ in range(4):
            jobs.refused.get(timeout=SOON)
        jobs.away = False
        assert jobs.settled.get(timeout=SOON).note == "delivered 200"
    assert [record.message for record in caplog.records] == [
        "webhooks wait: the test's queue is away",
        "webhooks go on: the queue answers again",
    ]


def test_a_delivery_is_settled_when_the_queue_is_back_and_not_made_again(
    jobs: WebhookJobs, sender: Sender, receiver: Receiver
) -> None:
    delivered = threading.Event()

    def answer_and_lose_the_queue(handler: BaseHTTPRequestHandler) -> None:
        jobs.away = True
        status(200)(handler)
        delivered.set()

    receiver.answering = answer_and_lose_the_queue
    jobs.add(ended_job("job_1", url_of(receiver)))
    with delivering(jobs, sender):
        wait_until(delivered)
        jobs.away = False
        assert jobs.settled.get(timeout=SOON) == Settled("job_1", None, "delivered 200")
    assert len(receiver.told) == 1


def test_what_waited_past_its_lease_is_left_to_whoever_takes_it_next(
    jobs: WebhookJobs, sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a lease shorter than a try nothing can be tried safely, and nothing is."""
    monkeypatch.setattr(deliverer_module, "LEASE_SECONDS", 1.0)
    jobs.add(ended_job("job_1", url_of(receiver)))
    with delivering(jobs, sender):
        assert [jobs.takes.get(timeout=SOON) for _ in range(5)] == [1, 0, 0, 0, 0]
    assert receiver.told == []
    assert jobs.open == 1


def test_an_idle_deliverer_asks_rarely(
    jobs: WebhookJobs, sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one delivery nothing is due: the next question comes when the pause between two is over."""
    monkeypatch.setattr(deliverer_module, "POLL_SECONDS", SOON)
    jobs.add(ended_job("job_1", url_of(receiver)))
    with delivering(jobs, sender):
        assert jobs.settled.get(timeout=SOON).note == "delivered 200"
    assert jobs.takes.qsize() == 1
