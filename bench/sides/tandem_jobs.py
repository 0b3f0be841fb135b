"""Tandem: the worker's own consumer, executor, leases, reporter, monitor and reaper, with runners that compute
nothing. The producer is the job store, as the API uses it, without HTTP."""

import asyncio
import tempfile
from collections.abc import Sequence
from typing import Any

from bench.side import ANSWER, THREADS, length, run
from tandem.artifacts import ArtifactStore
from tandem.events import connect_async, read_events
from tandem.job import Job, JobState
from tandem.job_store import JobStore
from tandem.settings import WorkerSettings
from tandem.tickets import create_app, lane
from worker.attempt import Attempt
from worker.executor import JobExecutor
from worker.lease import LeaseKeeper
from worker.monitor import JobMonitor
from worker.reaper import Reaper
from worker.reporter import Reporter
from worker.ticket_consumer import TicketConsumer

MODEL = "no-op"
LANE = lane("inference", MODEL)
WORKER = "bench"
ROWS_OF_A_JOB = 2000
"""Inputs of one job, near the limit of specs.py: a batch is a few such jobs."""


def settings(url: str) -> WorkerSettings:
    return WorkerSettings(redis_url=url, artifacts_url=f"file://{tempfile.gettempdir()}/tandem-bench-artifacts")


def job_store(url: str) -> JobStore:
    read = settings(url)
    return JobStore(read, ArtifactStore(read.artifacts_url))


def answer(attempt: Attempt) -> object:
    """One result, or one for each row if the job has rows."""
    inputs = attempt.job.spec.get("inputs")
    return ANSWER if inputs is None else [length(text) for text in inputs]


def work(url: str) -> None:
    read, jobs = settings(url), job_store(url)
    leases, reporter = LeaseKeeper(jobs, read.lease_seconds, WORKER), Reporter(jobs)
    consumer = TicketConsumer(
        create_app(read),
        hostname=f"worker@{WORKER}",
        threads=THREADS,
        on_ticket=lambda ticket_lane: executor.run(ticket_lane),
    )
    monitor = JobMonitor(consumer.tell_monitors, consumer.flush_events)
    executor = JobExecutor(jobs, leases, reporter, monitor, {"inference": answer}, WORKER)
    for part in (leases, reporter, monitor, Reaper(jobs, read.sweep_seconds)):
        part.start()
    consumer.run([LANE])


class TandemProducer:
    def __init__(self, url: str) -> None:
        self._jobs = job_store(url)
        self._loop, self._client = asyncio.new_event_loop(), connect_async(url)

    def submit(self, count: int) -> list[str]:
        return [self._submit({}) for _ in range(count)]

    def wait(self, submitted: list[str]) -> list[Any]:
        # When the last of many has ended, most others have: one read tells, and no stream need be followed.
        self._wait_for_end(submitted[-1])
        return [self._ended(job_id).result for job_id in submitted]

    def rows(self, texts: Sequence[str]) -> list[int]:
        parts = [texts[start : start + ROWS_OF_A_JOB] for start in range(0, len(texts), ROWS_OF_A_JOB)]
        submitted = [self._submit({"inputs": list(part)}) for part in parts]
        return [row for answers in self.wait(submitted) for row in answers]

    def _submit(self, spec: dict[str, object]) -> str:
        return self._jobs.submit(kind="inference", model=MODEL, lane=LANE, owner="bench", spec=spec).job.id

    def _ended(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if not job.state.is_terminal:
            self._wait_for_end(job_id)
            job = self._jobs.get(job_id)
        if job.state is not JobState.SUCCEEDED:
            raise RuntimeError(f"job {job_id} is {job.state}: {job.failure}")
        return job

    def _wait_for_end(self, job_id: str) -> None:
        self._loop.run_until_complete(self._follow(job_id))

    async def _follow(self, job_id: str) -> None:
        async for _ in read_events(self._client, job_id):
            pass


if __name__ == "__main__":
    run(work, TandemProducer)
