"""A worker without models: all that a real one does around its runners, from Celery's tickets to the drain.

Its runner computes for as long as the job says and answers another result in each attempt, so that an answer that
was accepted twice, or from the wrong attempt, is seen. Importing this imports no torch.
"""

import logging
import os
import secrets
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.artifacts import ArtifactStore
from tandem.errors import Draining, InvalidRequest, OutOfMemory
from tandem.job_store import JobStore
from tandem.settings import WorkerSettings
from tandem.tickets import create_app
from tests.chaos.ledger import Ledger
from worker.attempt import Attempt
from worker.executor import JobExecutor
from worker.lease import LeaseKeeper
from worker.monitor import JobMonitor
from worker.reaper import Reaper
from worker.reporter import Reporter
from worker.runners.batch import BatchRunner
from worker.ticket_consumer import TicketConsumer

POISON = "poison"
"""A row of a shard that asks this kills its worker."""
ROWS_AT_ONCE = 4
RELEASE_SECONDS = 10.0
"""As in WorkerService: after the drain's grace, for runners to stop and their jobs to be released."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    redis_url: str
    folder: str
    """Of the ledger; the artifacts lie in `artifacts` under it."""
    lanes: Sequence[str]
    threads: int = 2
    lease_seconds: float = 1.0
    sweep_seconds: float = 0.2
    drain_seconds: float = 1.0
    crashes_allowed: int = 100
    """The setting's maximum: jobs are lost with their worker by chance here, not by their own fault."""
    clock_seconds: float = 0.0
    """How far this process's wall clock is ahead."""

    @property
    def settings(self) -> WorkerSettings:
        return WorkerSettings(
            redis_url=self.redis_url,
            artifacts_url=f"file://{self.folder}/artifacts",
            lease_seconds=self.lease_seconds,
            sweep_seconds=self.sweep_seconds,
            drain_seconds=self.drain_seconds,
            crashes_allowed=self.crashes_allowed,
        )


class LightRunner:
    """Does what a job's spec says: `work_seconds`, perhaps `fails`, `fails_first`, `answer_bytes` or `publishes`.

    A job that is `deaf` does not look whether it must stop, and answers in any case: as a zombie does that was frozen
    between its last look and its answer.
    """

    def __init__(self, ledger: Ledger, artifacts: ArtifactStore) -> None:
        self._ledger = ledger
        self._artifacts = artifacts

    def __call__(self, attempt: Attempt) -> Any:
        started = time.monotonic()
        job, spec = attempt.job, attempt.job.spec
        stopped = threading.Event()
        attempt.on_stop(stopped.set)
        attempt.report("progress", {"attempt": attempt.fence})
        if spec.get("deaf"):
            threading.Event().wait(spec["work_seconds"])
        else:
            stopped.wait(spec["work_seconds"])
            attempt.check()
        if attempt.fence <= spec.get("fails_first", 0):
            raise OutOfMemory("this attempt was to fail for a passing reason")
        if spec.get("fails"):
            raise InvalidRequest("this job was to fail")
        result: Any = {
            "attempt": attempt.fence,
            "nonce": secrets.token_hex(8),
            "text": "x" * spec.get("answer_bytes", 0),
        }
        if spec.get("publishes"):
            result = self._publish(job.id, result["nonce"])
        self._ledger.produced(job, started, time.monotonic(), result)
        return result

    def _publish(self, job_id: str, content: str) -> str:
        """As a training does with its adapter: a later attempt answers with what an earlier one has published."""
        name = f"documents/{job_id}"
        self._artifacts.publish(name, content.encode())
        document = self._artifacts.published(name)
        assert document is not None, "what was published can be read"
        return document.decode()


def answer_row(row: Attempt) -> dict[str, str]:
    if row.job.spec["inputs"] == POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"said": row.job.spec["inputs"]}


class LightWorker:
    """The parts of WorkerService that need no torch, put together as there."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        settings = options.settings
        artifacts = ArtifactStore(settings.artifacts_url)
        jobs = JobStore(settings, artifacts)
        worker_id = f"light-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._leases = LeaseKeeper(jobs, settings.lease_seconds, worker_id)
        self._reporter = Reporter(jobs)
        self._reaper = Reaper(jobs, settings.sweep_seconds)
        self._consumer = TicketConsumer(
            create_app(settings),
            hostname=f"worker@{worker_id}",
            threads=options.threads,
            on_ticket=lambda lane: self._executor.run(lane),
        )
        self._monitor = JobMonitor(self._consumer.tell_monitors, self._consumer.flush_events)
        runner = LightRunner(Ledger(Path(options.folder)), artifacts)
        shards = BatchRunner(answer_row, lambda _model, _task: nullcontext(), artifacts, rows_at_once=ROWS_AT_ONCE)
        self._executor = JobExecutor(
            jobs, self._leases, self._reporter, self._monitor, {"inference": runner, "batch": shards}, worker_id
        )
        self._drain_asked = threading.Event()

    def run(self) -> None:
        """Work until SIGTERM, then drain and end the process."""
        for part in (self._leases, self._reporter, self._monitor, self._reaper):
            part.start()
        threading.Thread(target=self._drain, name="drain", daemon=True).start()
        signal.signal(signal.SIGTERM, lambda *_: self._drain_asked.set())
        self._consumer.run(self._options.lanes)

    def _drain(self) -> None:
        self._drain_asked.wait()
        self._executor.close()
        self._consumer.pause(self._options.lanes)
        if not self._leases.wait_idle(self._options.drain_seconds):
            self._leases.stop_all(Draining())
            self._leases.wait_idle(RELEASE_SECONDS)
        self._monitor.stop()
        logging.shutdown()
        os._exit(0)


def set_clock_ahead(seconds: float) -> None:
    """Let every module of this process read a wall clock that is `seconds` ahead; `time.monotonic` is as it was."""
    real = time.time

    def ahead() -> float:
        return real() + seconds

    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if value is real:
                setattr(module, name, ahead)


def main(options: WorkerOptions) -> None:
    logging.basicConfig(level=logging.WARNING)
    if options.clock_seconds:
        set_clock_ahead(options.clock_seconds)
    LightWorker(options).run()
