"""Who runs what, in the model: a job that was lost together with others runs alone next, to find the culprit."""

from dataclasses import dataclass
from typing import Literal

from tests.model.ready_model import ModelJob, ReadyModel

PROBATION_MS = 30_000
"""A job that has run for so long is trusted."""
QUIET_MS = 60_000
"""For so long a worker takes nothing new, so that it comes to run a suspect alone."""
LOST_LEASES = 4
"""For so many leases it is remembered how a worker was lost."""

Allowed = Literal["any", "alone"]
Guilt = Literal["alone", "together", "innocent"]


@dataclass(frozen=True, slots=True)
class Remembered:
    """A value that is forgotten when its time is over."""

    value: str
    until: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What one worker's loss says of the jobs that it ran."""

    solo: str
    """The job that it ran alone, or nothing."""
    is_together: bool
    """Several of its jobs can have killed it."""

    def guilt(self, job_id: str) -> Guilt:
        """`alone`: it alone can have killed the worker; `together`: any of several can; `innocent`: not this one."""
        if self.solo:
            return "alone" if self.solo == job_id else "innocent"
        return "together" if self.is_together else "alone"


class WorkersModel(ReadyModel):
    def __init__(self, now: int) -> None:
        super().__init__(now)
        self.solo: dict[str, str] = {}
        """Worker -> the job that it runs alone, until that is trusted."""
        self.quiet: dict[str, Remembered] = {}
        """Worker -> the lane for whose suspect it takes nothing more."""
        self.quiet_for: dict[str, Remembered] = {}
        """Lane -> the worker that keeps quiet for it."""
        self.lost: dict[str, Remembered] = {}
        """Worker that was lost -> the job that it ran alone, or nothing."""
        self.nudges: dict[str, tuple[list[str], int]] = {}
        """Worker -> the jobs that it is to look at, the latest first, and when that is forgotten."""

    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds
        for memory in (self.quiet, self.quiet_for, self.lost):
            for name in [name for name, kept in memory.items() if kept.until < self.now]:
                del memory[name]
        self.nudges = {worker: kept for worker, kept in self.nudges.items() if kept[1] >= self.now}

    def new_jobs(self, worker: str) -> int:
        """Those that are still in their probation."""
        return sum(job.place == "running" and job.worker == worker and not job.trusted for job in self.jobs.values())

    def may_take(self, lane: str, worker: str) -> Allowed | None:
        """An ordinary job of the lane (`any`), a suspect (`alone`), or nothing."""
        if worker in self.solo:
            return None
        if self.ready(lane, "alone"):
            if not self.new_jobs(worker):
                self.quiet.pop(worker, None)
                self.quiet_for.pop(lane, None)
                return "alone"
            if lane not in self.quiet_for:
                self.quiet_for[lane] = Remembered(worker, self.now + QUIET_MS)
                self.quiet[worker] = Remembered(lane, self.now + QUIET_MS)
        if worker in self.quiet:
            if self.ready(self.quiet[worker].value, "alone"):
                return None
            del self.quiet[worker]
        return "any"

    def worker_leaves(self, job: ModelJob, to: Literal["held", "ended"]) -> None:
        """The job runs no more."""
        was_new, job.trusted, job.place = not job.trusted, False, to
        if was_new:
            self._less_company(job)

    def trust_survivor(self, job: ModelJob) -> None:
        assert job.started_at is not None
        if not job.trusted and self.now - job.started_at >= PROBATION_MS:
            job.trusted, job.suspect = True, False
            self._less_company(job)

    def losses(self, lost: list[ModelJob], lease_ms: int) -> dict[str, Loss]:
        """By worker. Its last claims have later leases: they are judged as the first of them was."""
        found: dict[str, Loss] = {}
        for worker in {job.worker for job in lost if job.worker is not None}:
            known = self.lost.get(worker)
            solo = self.solo.get(worker, "") if known is None else known.value
            trusted = sum(job.worker == worker and job.trusted for job in lost)
            several = self.new_jobs(worker) + trusted > 1
            loss = found[worker] = Loss(solo, several or (known is not None and not solo))
            if loss.solo or loss.is_together:
                self.lost[worker] = Remembered(solo, self.now + LOST_LEASES * lease_ms)
        return found

    def _less_company(self, job: ModelJob) -> None:
        """A worker that kept quiet, or ran this one alone, may take others now: their tickets are rung."""
        assert job.worker is not None
        if not self.new_jobs(job.worker) and job.worker in self.quiet:
            self.top_up(self.quiet[job.worker].value)
        if self.solo.get(job.worker) == job.id:
            del self.solo[job.worker]
            for lane in self.lanes:
                self.top_up(lane)
