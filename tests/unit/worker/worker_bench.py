"""A worker's parts around a runner, over a real Valkey server; the runners are the tests' own."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.artifacts import ArtifactStore
from tandem.job_store import JobStore
from tandem.settings import Settings
from tandem.specs import Scheduling
from worker.attempt import Attempt
from worker.executor import JobExecutor
from worker.lease import LeaseKeeper
from worker.monitor import JobMonitor
from worker.reporter import Reporter

LEASE_SECONDS = 0.6
LANE, WORKER = "a-lane", "a-worker"
SOON = 30.0
"""Seconds that an event may take on a busy machine."""


def nobody_watches(_event: str, **_fields: Any) -> None:
    """Monitors are another test's matter."""


@dataclass
class Bench:
    jobs: JobStore
    leases: LeaseKeeper
    reporter: Reporter

    def submit(self, **scheduling: Any) -> str:
        return self.jobs.submit(
            kind="inference",
            model="m",
            lane=LANE,
            owner="o",
            spec=Scheduling(**scheduling).model_dump(mode="json", exclude_defaults=True),
            scheduling=Scheduling(**scheduling),
        ).job.id

    def executor(self, runner: Callable[[Attempt], Any]) -> JobExecutor:
        monitor = JobMonitor(nobody_watches)
        return JobExecutor(self.jobs, self.leases, self.reporter, monitor, {"inference": runner}, WORKER)

    def events(self, job_id: str, kind: str) -> list[str]:
        stream = self.jobs.redis.xrange(f"tandem:events:{job_id}")
        return [fields["data"] for _, fields in stream if fields["type"] == kind]


def bench_over(url: str, folder: Path) -> Iterator[Bench]:
    settings = Settings(redis_url=url, artifacts_url=f"file://{folder}", lease_seconds=LEASE_SECONDS)
    jobs = JobStore(settings, ArtifactStore(settings.artifacts_url))
    bench = Bench(jobs, LeaseKeeper(jobs, LEASE_SECONDS, WORKER), Reporter(jobs))
    bench.leases.start()
    bench.reporter.start()
    yield bench
    bench.leases.stop()
    bench.reporter.stop()
    jobs.close()


def wait_until_stopped(attempt: Attempt) -> None:
    stopped = threading.Event()
    attempt.on_stop(stopped.set)
    assert stopped.wait(SOON)
    attempt.check()
