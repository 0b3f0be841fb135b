"""The client's calls on the queue, over the real API; a stand-in plays the worker."""

import threading
from collections.abc import Iterator

import pytest

from tandem import Conflict, DeadlineExceeded, InvalidRequest, NotFound, Tandem, UnknownJob
from tandem.errors import OutOfMemory
from tandem.job import JobState
from tests.integration.api.api_server import API_KEY
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker, generated

LANE = f"tandem.inference.{CHAT_MODEL}"


@pytest.fixture
def tandem(api_url: str) -> Iterator[Tandem]:
    with Tandem(api_url, API_KEY, timeout=30.0) as tandem:
        yield tandem


def test_a_job_is_submitted_with_its_schedule(tandem: Tandem) -> None:
    job = tandem.submit(
        "text-generation",
        "Hello",
        model=CHAT_MODEL,
        priority="urgent",
        delay_seconds=60,
        deadline_seconds=600,
        retry={"max_retries": 1},
        metadata={"customer": "17"},
    )
    assert (job.priority, job.metadata, job.paused, job.retries) == ("urgent", {"customer": "17"}, False, 0)
    assert job.not_before == pytest.approx(job.created_at + 60, abs=0.01)
    assert job.deadline == pytest.approx(job.created_at + 600, abs=0.01)
    assert job.record["spec"]["retry"]["max_retries"] == 1
    with pytest.raises(InvalidRequest, match="priorty"):
        tandem.submit("text-generation", "Hello", model=CHAT_MODEL, priorty="high")  # a slip of the fingers


def test_whoever_waits_for_a_job_that_expires_gets_that_error(tandem: Tandem, worker: StandInWorker) -> None:
    job = tandem.submit("text-generation", "Hello", model=CHAT_MODEL, deadline_seconds=30)

    def expire(worker: StandInWorker) -> None:
        claim = worker.take()
        worker.jobs.finish(claim.job.id, claim.fence, JobState.EXPIRED)

    with worker.working(expire), pytest.raises(DeadlineExceeded, match=job.id):
        job.wait(timeout=30)
    assert job.refresh().state is JobState.EXPIRED
    assert [found.id for found in tandem.jobs(state="expired")] == [job.id]


def test_a_job_waits_from_pause_to_resume(tandem: Tandem, worker: StandInWorker) -> None:
    job = tandem.submit("text-generation", "Hello", model=CHAT_MODEL)
    assert job.pause().paused
    assert worker.jobs.claim(LANE, "asking") is None
    assert not job.resume().paused
    with worker.answering(generated("Hi")):
        assert job.wait(timeout=30)["generated_text"] == "Hi"
    with pytest.raises(UnknownJob):
        tandem.pause("job_none")


def test_dead_letters_are_listed_and_requeued(tandem: Tandem, worker: StandInWorker) -> None:
    job = tandem.submit("text-generation", "Hello", model=CHAT_MODEL)
    with pytest.raises(Conflict):
        job.requeue()
    worker.bury(worker.take(), OutOfMemory())
    (letter,) = tandem.dead_letters()
    assert (letter.id, letter.dead) == (job.id, True)
    with pytest.raises(OutOfMemory):
        letter.wait(timeout=30)
    again = letter.requeue()
    assert letter.requeue().id == again.id
    assert letter.refresh().requeued_as == again.id
    assert list(tandem.dead_letters()) == []
    with worker.answering(generated("at last")):
        assert again.wait(timeout=30)["generated_text"] == "at last"


def test_lanes_and_the_service_are_paused_and_resumed(tandem: Tandem) -> None:
    assert tandem.pause_lane(LANE).paused_since is not None
    since = tandem.pause_service()
    lanes = tandem.lanes()
    assert lanes.paused_since == since
    assert {lane.name for lane in lanes.lanes if lane.paused_since is not None} == {LANE}
    tandem.resume_service()
    assert tandem.resume_lane(LANE).paused_since is None
    assert tandem.lanes().paused_since is None
    with pytest.raises(NotFound, match=r"tandem\.inference\.none"):
        tandem.pause_lane("tandem.inference.none")


def test_a_stream_ends_with_what_the_job_failed_with(tandem: Tandem, worker: StandInWorker) -> None:
    def work(worker: StandInWorker) -> None:
        claim = worker.take()
        worker.say(claim, "Hello")
        worker.bury(claim, OutOfMemory())

    with worker.working(work):
        pieces = tandem.stream("Hi", model=CHAT_MODEL, timeout=10)
        assert next(pieces) == "Hello"
        with pytest.raises(OutOfMemory):
            next(pieces)


def test_a_stream_goes_on_over_a_pause(tandem: Tandem, worker: StandInWorker) -> None:
    """The next attempt's repetition of what was written before is held back."""
    paused = threading.Event()

    def work(worker: StandInWorker) -> None:
        first = worker.take()
        worker.say(first, "Hello")
        tandem.pause(first.job.id)
        worker.jobs.release(first.job.id, first.fence)
        paused.set()
        second = worker.take()
        worker.say(second, "Hello", " again")
        worker.succeed(second, generated("Hello again"))

    with worker.working(work):
        pieces = tandem.stream("Hi", model=CHAT_MODEL, timeout=30)
        assert next(pieces) == "Hello"
        assert paused.wait(10)
        (job,) = tandem.jobs()
        job.resume()
        assert list(pieces) == [" again"]
