"""The network before the queue's server fails: calls end in time, work goes on afterwards, nothing is done twice."""

import threading
import time
from collections.abc import Iterator

import pytest

from tandem.errors import QueueUnavailable
from tandem.job_store import JobStore
from tandem.outages import HUNG_SECONDS
from tests.chaos.stage import STEADY_LEASE_SECONDS, Stage
from tests.fault_proxy import (
    ANSWERS_LOST,
    BLACK_HOLE,
    CLEAR,
    HALF_OPEN,
    RESET,
    SLOW_CLOSE,
    Fault,
    FaultProxy,
)
from tests.valkey_server import ValkeyServer

ANSWER_SECONDS = 6.0
"""Within which an API request knows that the queue cannot be reached: 1.5 s, and the rest for a busy
machine."""
FAULT_SECONDS = 1.5
"""Longer than a lease."""
JOBS = 20
SLOW = Fault(delay_seconds=0.02, jitter_seconds=0.02)
THROTTLED = Fault(bytes_per_second=200_000)
LATE = Fault(delay_seconds=1.0)
"""Each answer comes, after the client has given up; and each question, after its connection is closed."""
CRAWLING = Fault(bytes_per_second=20)
"""So slow that not even a small question is sent in time."""

FAULTS = {
    "reset": RESET,
    "half-open": HALF_OPEN,
    "black hole": BLACK_HOLE,
    "answers lost": ANSWERS_LOST,
    "slow close": SLOW_CLOSE,
    "late": LATE,
    "crawling": CRAWLING,
}
"""Under which nothing can be done."""
NUISANCES = {"latency": SLOW, "throttled": THROTTLED}
"""Under which everything only takes longer."""


@pytest.fixture
def proxy(shared_valkey: ValkeyServer) -> Iterator[FaultProxy]:
    with FaultProxy(shared_valkey.port) as proxy:
        yield proxy


@pytest.fixture
def proxy_url(proxy: FaultProxy, valkey_url: str, shared_valkey: ValkeyServer) -> str:
    return valkey_url.replace(f":{shared_valkey.port}/", f":{proxy.port}/")


@pytest.fixture
def distant(stage: Stage, proxy_url: str) -> Iterator[JobStore]:
    """An API's store, with the proxy on its way."""
    store = stage.store(proxy_url)
    yield store
    store.close()


def let_the_outage_be_forgotten() -> None:
    """A store that has seen a hung server makes no calls for a moment."""
    threading.Event().wait(HUNG_SECONDS)


def assert_refused_in_time(stage: Stage, distant: JobStore, key: str) -> None:
    let_the_outage_be_forgotten()
    started = time.monotonic()
    with pytest.raises(QueueUnavailable):
        stage.send(distant, key)
    assert time.monotonic() - started < ANSWER_SECONDS


@pytest.mark.parametrize("fault", FAULTS)
def test_a_submission_fails_in_time_and_its_repetition_makes_one_job(
    fault: str, stage: Stage, proxy: FaultProxy, distant: JobStore
) -> None:
    """Whether the first one arrived, nobody could tell: with answers lost it did, with a half-open line it will."""
    stage.send(distant, "before")
    proxy.switch(FAULTS[fault])
    for number in range(2):
        assert_refused_in_time(stage, distant, f"key-{number}")
    proxy.switch(CLEAR)
    let_the_outage_be_forgotten()
    for number in range(2):
        stage.send(distant, f"key-{number}")
    stage.worker()
    stage.wait_ended()
    tally = stage.audit()
    assert (tally.jobs, tally.ended) == (3, {"succeeded": 3})


@pytest.mark.parametrize("fault", FAULTS)
def test_every_read_fails_in_time(fault: str, stage: Stage, proxy: FaultProxy, distant: JobStore) -> None:
    job_id = stage.send(distant, "known").id
    proxy.switch(FAULTS[fault])
    for read in (lambda: distant.get(job_id), distant.counts):
        started = time.monotonic()
        with pytest.raises(QueueUnavailable):
            read()
        assert time.monotonic() - started < ANSWER_SECONDS
        let_the_outage_be_forgotten()
    proxy.switch(CLEAR)
    assert distant.get(job_id).id == job_id


@pytest.mark.parametrize("nuisance", NUISANCES)
def test_a_slow_network_only_takes_longer(
    nuisance: str, stage: Stage, proxy: FaultProxy, proxy_url: str, distant: JobStore
) -> None:
    proxy.switch(NUISANCES[nuisance])
    worker = stage.worker(redis_url=proxy_url, lease_seconds=STEADY_LEASE_SECONDS)
    for number in range(JOBS):
        stage.send(distant, f"key-{number}")
    stage.wait_ended()
    assert worker.is_alive()
    tally = stage.audit()
    assert (tally.ended, tally.attempts) == ({"succeeded": JOBS}, JOBS)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_goes_on_when_the_network_is_back(
    fault: str, stage: Stage, proxy: FaultProxy, proxy_url: str
) -> None:
    """It runs jobs when the line fails, for longer than their lease; it is not restarted, and each job ends once."""
    worker = stage.worker(redis_url=proxy_url)
    for number in range(JOBS):
        stage.submit(f"before-{number}", work_seconds=0.1)
    stage.wait_until(lambda: stage.jobs.counts()["succeeded"], "the worker is at work")
    proxy.switch(FAULTS[fault])
    time.sleep(FAULT_SECONDS)  # the fault's length; nothing happens that could be waited for
    proxy.switch(CLEAR)
    for number in range(JOBS):
        stage.submit(f"after-{number}")
    stage.wait_ended()
    assert worker.is_alive(), stage.logs()
    assert stage.audit().ended == {"succeeded": 2 * JOBS}


def test_a_network_that_flickers_ends_each_job_once(stage: Stage, proxy: FaultProxy, proxy_url: str) -> None:
    """All the faults in turn, over and over, while jobs arrive; two workers behind the bad line and one beside it."""
    workers = [stage.worker(redis_url=proxy_url), stage.worker(redis_url=proxy_url), stage.worker()]
    producer = stage.producer("near", jobs=200, pause_seconds=0.03)
    while producer.is_alive():
        for fault in (RESET, HALF_OPEN, ANSWERS_LOST, SLOW_CLOSE, BLACK_HOLE, CRAWLING):
            proxy.switch(fault)
            time.sleep(0.2)  # as long as the fault lasts
            proxy.switch(CLEAR)
            time.sleep(0.4)  # as long as the line is good
    stage.wait_ended()
    assert all(worker.is_alive() for worker in workers), stage.logs()
    assert stage.audit().acknowledged == 200
