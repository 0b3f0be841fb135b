"""Steps of a run that claim jobs, and that an attempt makes, in time or too late."""

import pytest

from tandem.job import JobState
from tandem.redis_connection import ANSWER_SECONDS
from tests.model.action import action
from tests.model.life_model import LEASE_MS
from tests.model.queue_under_test import is_accepted
from tests.model.ready_model import ModelJob
from tests.model.side_by_side import BUSY_LANES, ENDS, FENCE_ERRORS, NOT_RUNNING, PASSING, WHICH, WORKERS
from tests.model.submission_steps import SubmissionSteps


class AttemptSteps(SubmissionSteps):
    @action(30, lane=BUSY_LANES, worker=WORKERS, has_ticket=(True, False), frozen_ms=(0,) * 14 + (900, 901))
    def claim(self, lane: str, worker: str, has_ticket: bool, frozen_ms: int) -> None:
        """With the ticket that rang for it, or without one. The server may be slow to get to the call."""
        if has_ticket and self.store.redis.rpop(lane) is not None:
            self.model.tickets[lane] -= 1
        self.move_server(frozen_ms)
        claim = self.store.claim(lane, worker)
        is_late = frozen_ms > ANSWER_SECONDS * 1000
        job = None if is_late else self.model.claim(lane, worker)
        if job is None:
            assert claim is None, "nothing was to be claimed"
            return
        assert claim is not None, f"{job.id} was to be claimed"
        assert (claim.job.id, claim.fence, claim.job.state) == (job.id, job.attempt, JobState.RUNNING)
        if job.deadline is None:
            assert claim.seconds_left is None
        else:
            assert claim.seconds_left == pytest.approx((job.deadline - self.model.now) / 1000, abs=1e-4)

    @action(10, worker=WORKERS)
    def renew(self, worker: str) -> None:
        """What a living worker does: all its attempts in one call."""
        fences = {job.id: job.attempt for job in self.jobs("running") if job.worker == worker}
        assert self.store.renew(worker, fences) == self.model.renew(fences)

    @action(
        10,
        when=lambda self: self.jobs("running"),
        number=WHICH,
        data=("progress", "metrics", "$checkpoint", "renew", "renew"),
        error=FENCE_ERRORS,
    )
    def report(self, number: int, data: str, error: int) -> None:
        job, content = self.pick(number, "running"), {"n": self.model.now % 1000}
        fence = job.attempt + error
        if data == "renew":
            fences = {job.id: fence}
            assert self.store.renew(job.worker or "", fences) == self.model.renew(fences)
            return
        wanted = self.model.report(job.id, fence, data, content)
        assert is_accepted(lambda: self.store.report(job.id, fence, [(data, content)])) == wanted

    @action(14, when=lambda self: self.jobs("running"), number=WHICH, error=FENCE_ERRORS, end=ENDS)
    def finish(self, number: int, error: int, end: str) -> None:
        job = self.pick(number, "running")
        self.finish_both(job, job.attempt + error, end)

    @action(
        8,
        when=lambda self: self.jobs("running"),
        number=WHICH,
        error=FENCE_ERRORS,
        delay_ms=(None, None, 0, 1000, LEASE_MS),
    )
    def give_back(self, number: int, error: int, delay_ms: int | None) -> None:
        """Uncharged, or to be tried again after a delay."""
        job = self.pick(number, "running")
        fence = job.attempt + error
        if delay_ms is None:
            wanted = self.model.release(job.id, fence)
            assert is_accepted(lambda: self.store.release(job.id, fence)) == wanted
        else:
            wanted = self.model.release(job.id, fence, PASSING.model_dump_json(), delay_ms)
            assert is_accepted(lambda: self.store.retry(job.id, fence, PASSING, delay_ms / 1000)) == wanted

    @action(3, when=lambda self: self.jobs("running"), number=WHICH, grace_ms=(0, 1000))
    def disown(self, number: int, grace_ms: int) -> None:
        """The worker knows of all its attempts but one, whose claim's answer was lost."""
        lost = self.pick(number, "running")
        worker = lost.worker or ""
        held = [job.id for job in self.jobs("running") if job.worker == worker and job is not lost]
        wanted = self.model.disown(worker, set(held), grace_ms)
        assert self.store.disown(worker, held, grace_seconds=grace_ms / 1000) == wanted

    @action(
        12,
        when=lambda self: self.jobs(*NOT_RUNNING),
        number=WHICH,
        error=(0, -1, 1),
        wish=("finish", "finish", "finish", "renew", "report", "release"),
    )
    def write_too_late(self, number: int, error: int, wish: str) -> None:
        """A zombie, or an attempt whose first answer was lost and that asks again."""
        job = self.pick(number, *NOT_RUNNING[1:]) if self.jobs(*NOT_RUNNING[1:]) else self.pick(number, "queued")
        fence = job.attempt + error
        if wish == "finish":
            self.finish_both(job, fence, "succeeded")
        elif wish == "renew":
            assert self.store.renew(job.worker or "w1", {job.id: fence}) == {job.id: "lost"}
        elif wish == "report":
            assert not is_accepted(lambda: self.store.report(job.id, fence, [("progress", {})]))
        else:
            assert not is_accepted(lambda: self.store.release(job.id, fence))

    def finish_both(self, job: ModelJob, fence: int, end: str) -> None:
        state = JobState.FAILED if end == "dead" else JobState(end)
        result = {"n": self.model.now % 1000} if end == "succeeded" else None
        failure = PASSING if state is JobState.FAILED else None
        text = failure.model_dump_json() if failure else None
        is_dead = end == "dead"
        wanted = self.model.finish(job.id, fence, state, result, text, is_dead)

        def write() -> None:
            self.store.finish(job.id, fence, state, result=result, failure=failure, is_dead=is_dead)  # type: ignore[arg-type]  # end states alone are drawn

        assert is_accepted(write) == wanted
