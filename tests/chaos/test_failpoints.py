"""A process dies at each named instant, twenty times; what it leaves behind harms no job.

Workers and producers are armed by TANDEM_FAILPOINT as an operator would do it, and die by SIGKILL in the midst of
their real work. Each dies at its own passage of the instant, so that the deaths meet different moments.
"""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem.failpoints import FAILPOINTS
from tests.chaos.nursery import Child, Nursery
from tests.chaos.stage import Stage

DEATHS = 20
PASSAGES = 3
"""The instant's first, second or third passage is the deadly one."""
LEASE_SECONDS = 0.6
"""What a dead worker held is free after so long."""
HELD_SECONDS = 3.0
"""The lease of workers that are drained: none of twenty may lose it before."""
LONG_SECONDS = 60.0
"""Far longer than a job of which the worker is to be drained may run on."""

WORK: dict[str, dict[str, Any]] = {
    # A job must outlast a renewal, of which there are three in a lease, or it passes none.
    "renew": {"work_seconds": 0.4 * LEASE_SECONDS},
    "artifact": {"work_seconds": 0.01, "answer_bytes": 70_000},
    "publish": {"work_seconds": 0.01, "publishes": True},
    "claim": {"work_seconds": 0.01},
    "finish": {"work_seconds": 0.01},
}
"""What jobs must do so that a worker passes the instants of a name."""


def assert_killed(children: list[Child]) -> None:
    assert [child.wait() for child in children] == [-signal.SIGKILL] * DEATHS


class Feed:
    """Keeps a few jobs queued, and no more than the living can take."""

    def __init__(self, stage: Stage, spec: dict[str, Any]) -> None:
        self._stage = stage
        self._spec = spec
        self.jobs = 0

    def __call__(self) -> None:
        if self._stage.jobs.counts()["queued"] < DEATHS:
            self._stage.submit(f"fed-{self.jobs}", **self._spec)
            self.jobs += 1


@pytest.fixture
def quick_stage(nursery: Nursery, valkey_url: str, tmp_path: Path) -> Iterator[Stage]:
    with Stage(nursery, valkey_url, tmp_path, lease_seconds=LEASE_SECONDS, sweep_seconds=0.1) as stage:
        yield stage


WORKER_FAILPOINTS = [name for name in FAILPOINTS if name.partition(".")[0] in WORK]


@pytest.mark.parametrize("name", WORKER_FAILPOINTS)
def test_workers_that_die_there_lose_no_job(name: str, quick_stage: Stage) -> None:
    feed = Feed(quick_stage, WORK[name.partition(".")[0]])
    armed = [quick_stage.worker(failpoint=f"{name}:{1 + number % PASSAGES}") for number in range(DEATHS)]

    def all_are_dead() -> bool:
        feed()
        return not any(worker.is_alive() for worker in armed)

    quick_stage.wait_until(all_are_dead, "every armed worker has died")
    assert_killed(armed)
    quick_stage.worker()
    quick_stage.wait_ended()
    tally = quick_stage.audit()
    assert tally.ended == {"succeeded": feed.jobs}


@pytest.mark.parametrize("name", ["submit.before", "submit.after"])
def test_producers_that_die_there_make_no_job_twice(name: str, quick_stage: Stage) -> None:
    """Each is followed by another that repeats the last key: whether it had arrived, the dead could not tell."""
    for number in range(DEATHS):
        armed = quick_stage.producer("p", jobs=10_000, failpoint=f"{name}:{1 + number % PASSAGES}")
        assert armed.wait() == -signal.SIGKILL
    assert quick_stage.producer("p", jobs=2 * DEATHS).wait() == 0
    quick_stage.worker()
    quick_stage.wait_ended()
    tally = quick_stage.audit()
    assert tally.jobs == tally.acknowledged == 2 * DEATHS


@pytest.mark.parametrize("name", ["release.before", "release.after"])
def test_workers_that_die_while_they_drain_lose_no_job(name: str, quick_stage: Stage) -> None:
    """Of a job that was given back nobody is charged; of one that was not yet, its lease runs out."""
    armed = [
        quick_stage.worker(failpoint=name, threads=1, drain_seconds=0.0, lease_seconds=HELD_SECONDS)
        for _ in range(DEATHS)
    ]
    jobs = [quick_stage.submit(f"long-{number}", work_seconds=LONG_SECONDS) for number in range(DEATHS)]
    quick_stage.wait_until(lambda: quick_stage.jobs.counts()["running"] == DEATHS, "each runs a job")
    for worker in armed:
        worker.signal(signal.SIGTERM)
    assert_killed(armed)
    for job_id in jobs:
        quick_stage.cancel(job_id)
    quick_stage.worker()
    quick_stage.wait_ended()
    tally = quick_stage.audit()
    assert tally.ended == {"cancelled": DEATHS}
    assert tally.crashes == (DEATHS if name == "release.before" else 0)


def test_every_instant_is_tried() -> None:
    producers, drains = ("submit.before", "submit.after"), ("release.before", "release.after")
    assert sorted(FAILPOINTS) == sorted([*WORKER_FAILPOINTS, *producers, *drains])
