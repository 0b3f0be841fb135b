"""What a chaos test plays on: light workers and producers over one queue server, one folder, and its audit."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tandem.artifacts import ArtifactStore
from tandem.errors import QueueUnavailable
from tandem.job import Job
from tandem.job_store import JobStore
from tandem.settings import Settings
from tandem.specs import Scheduling
from tests.chaos.ledger import Books, Ledger, Tally, audit
from tests.chaos.light_producer import ProducerOptions
from tests.chaos.light_worker import WorkerOptions
from tests.chaos.nursery import Child, Nursery

LANE = "chaos"
PATIENCE_SECONDS = 60.0
"""For what takes a second or two on an idle machine."""
POLL_SECONDS = 0.02
STEADY_LEASE_SECONDS = 10.0
"""For workers that may lose no lease: a busy machine holds up no renewal for so long."""
AT_ONCE = Scheduling()
SHOWN_LOGS, SHOWN_CHARACTERS = 6, 2000
"""Of the processes' logs, when something has not come about: the ones written last, and their ends."""


class Stage:
    """Not thread-safe. Closing it kills what it has started."""

    def __init__(self, nursery: Nursery, redis_url: str, folder: Path, **options: Any) -> None:
        """`options` are WorkerOptions' fields, for every worker."""
        self._nursery = nursery
        self._options = WorkerOptions(redis_url, str(folder), **{"lanes": (LANE,), **options})
        self._ledger = Ledger(folder)
        self._children: list[Child] = []
        self.folder = folder
        self.jobs = self.store(redis_url)
        """Connected to the server itself, whatever way the workers take."""

    def store(self, redis_url: str) -> JobStore:
        """A store with the workers' settings, by a way of its own. The caller closes it."""
        artifacts_url = self._options.settings.artifacts_url
        settings = Settings(
            redis_url=redis_url, artifacts_url=artifacts_url, lease_seconds=self._options.lease_seconds
        )
        return JobStore(settings, ArtifactStore(artifacts_url))

    def worker(self, *, failpoint: str | None = None, **changes: Any) -> Child:
        """Start one; `changes` to the stage's options."""
        return self._keep(self._nursery.start(replace(self._options, **changes), failpoint=failpoint))

    def producer(self, name: str, *, jobs: int, seed: int = 0, failpoint: str | None = None, **more: Any) -> Child:
        options = ProducerOptions(
            self._options.redis_url, str(self.folder), self._options.lanes, name, seed, jobs, **more
        )
        return self._keep(self._nursery.start(options, failpoint=failpoint))

    def submit(self, key: str, *, work_seconds: float = 0.01, scheduling: Scheduling = AT_ONCE, **spec: Any) -> str:
        """The id of a new job of the first lane, noted as acknowledged."""
        return self.send(self.jobs, key, work_seconds=work_seconds, scheduling=scheduling, **spec).id

    def send(
        self,
        jobs: JobStore,
        key: str,
        *,
        work_seconds: float = 0.01,
        scheduling: Scheduling = AT_ONCE,
        **spec: Any,
    ) -> Job:
        """The same, by another store. Raises what the store raises; then nothing was acknowledged."""
        submitted = jobs.submit(
            kind="inference",
            model="light",
            lane=self._options.lanes[0],
            owner="test",
            spec={"key": key, "work_seconds": work_seconds, **spec},
            scheduling=scheduling,
            idempotency_key=key,
        )
        self._ledger.acknowledged(key, submitted.job.id)
        return submitted.job

    def cancel(self, job_id: str) -> None:
        self._ledger.cancelling(job_id)
        self.jobs.cancel(job_id)

    def books(self) -> Books:
        return Books.read(self.folder)

    def wait_until(self, holds: Callable[[], object], what: str, timeout: float = PATIENCE_SECONDS) -> None:
        """Look until it holds: other processes cannot be waited for in another way. Fails with the workers' logs."""
        deadline = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < deadline, f"{what}: not after {timeout:.0f} s\n{self.logs()}"
            time.sleep(POLL_SECONDS)

    def wait_ended(self, timeout: float = PATIENCE_SECONDS) -> None:
        """Until every job has ended, while the server may come and go."""
        self.wait_until(self._all_ended, "every job has ended", timeout)

    def audit(self) -> Tally:
        return audit(self.folder, self.jobs, self._options.redis_url)

    def logs(self) -> str:
        """The last lines of every process's log."""
        written = sorted(self.folder.glob("log-*.txt"), key=lambda path: path.stat().st_mtime)
        tails = (
            f"--- {log.name}\n{log.read_text(errors='replace')[-SHOWN_CHARACTERS:]}" for log in written[-SHOWN_LOGS:]
        )
        return "\n".join([f"jobs: {self.jobs.counts()}", *tails])

    def close(self) -> None:
        for child in self._children:
            child.kill()
        self.jobs.close()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, child: Child) -> Child:
        self._children.append(child)
        return child

    def _all_ended(self) -> bool:
        try:
            counts = self.jobs.counts()
        except QueueUnavailable:
            return False
        return counts["queued"] + counts["running"] == 0
