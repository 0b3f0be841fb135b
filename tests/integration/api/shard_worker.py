"""Runs shards of batches beside a test: the real runner over the API's stores, with answers written in the test."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from tandem.artifacts import ArtifactStore
from tandem.job_store import JobStore
from tandem.settings import Settings
from tandem.tickets import lane
from tests.integration.api.stand_in_worker import CHAT_MODEL
from worker.attempt import Attempt
from worker.executor import JobExecutor
from worker.lease import LeaseKeeper
from worker.monitor import JobMonitor
from worker.reporter import Reporter
from worker.runners.batch import BatchRunner

WORKER = "shard-worker"
ROWS_AT_ONCE = 4
BLOCK_SECONDS = 0.2
"""One wait for a ticket: how late the end of the block is noticed."""


@contextmanager
def running_shards(
    settings: Settings, run_row: Callable[[Attempt], Any], model: str = CHAT_MODEL
) -> Iterator[LeaseKeeper]:
    """While the block runs, so do shards of a model, one at a time."""
    artifacts = ArtifactStore(settings.artifacts_url)
    jobs = JobStore(settings, artifacts)
    leases, reporter = LeaseKeeper(jobs, settings.lease_seconds, WORKER), Reporter(jobs)
    runner = BatchRunner(run_row, lambda _model, _task: nullcontext(), artifacts, rows_at_once=ROWS_AT_ONCE)
    monitor = JobMonitor(lambda _event, **_fields: None)
    executor = JobExecutor(jobs, leases, reporter, monitor, {"batch": runner}, WORKER)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            jobs.wake()
            if jobs.redis.brpop([lane("batch", model)], timeout=BLOCK_SECONDS) is not None:
                executor.run(lane("batch", model))

    leases.start()
    reporter.start()
    thread = threading.Thread(target=work, name=WORKER)
    thread.start()
    try:
        yield leases
    finally:
        over.set()
        thread.join()
        leases.stop()
        reporter.stop()
        jobs.close()
