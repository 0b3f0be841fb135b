"""All steps of a run, the reads, and how a run ends: nothing is lost, and nothing is left."""

from collections.abc import Sequence
from typing import Any

import pytest

from tandem.errors import UnknownJob
from tandem.job import JobState
from tandem.specs import PRIORITIES
from tests.model import invariants
from tests.model.action import action
from tests.model.life_model import LEASE_MS, compact
from tests.model.ready_model import ModelJob
from tests.model.service_steps import ServiceSteps
from tests.model.side_by_side import LANES


class QueueMachine(ServiceSteps):
    # Reads

    @action(2, state=("queued", "running", "failed"), kind=(None, "finetune"))
    def read(self, state: str, kind: Any) -> None:
        for wish in ("cancel", "pause", "resume", "requeue_dead", "get"):
            with pytest.raises(UnknownJob):
                getattr(self.store, wish)("job_that_never_was")
        jobs = self.jobs()
        assert ids(self.store.list(limit=100)) == [job.id for job in jobs]
        wanted = [job.id for job in jobs if job.state == state and kind in (None, job.kind)]
        assert ids(self.store.list(state=JobState(state), kind=kind, limit=100)) == wanted
        assert ids(self.store.list(model="m2", limit=100)) == [job.id for job in jobs if job.model == "m2"]
        for job in jobs[:3]:
            check_record(self.store.get(job.id), job)
        counts = {str(name): len(self.jobs(name)) for name in JobState}
        assert self.store.counts() == counts
        dead = sorted(((job.died_at, job.id) for job in jobs if job.died_at is not None), reverse=True)
        assert ids(self.store.dead_letters(limit=100)) == [job_id for _, job_id in dead]
        for lane in self.store.lanes():
            since = self.model.paused.get(lane.lane)
            assert lane.paused_since == (None if since is None else since / 1000)
            assert lane.ready == len(self.model.ready(lane.lane, "ready", "alone"))
        assert {lane.lane for lane in self.store.lanes()} == self.model.lanes | set(self.model.paused) - {"*"}

    # The end of a run

    def teardown(self) -> None:
        """Nothing is lost and nothing is left: a living worker ends every job, and then all can be forgotten."""
        for lane in sorted(self.model.paused):
            self.resume_lane_both(lane)
        for job in self.jobs():
            if job.paused:
                self.tell_both(job, "resume")
        for _ in range(ROUNDS):
            if not self.jobs("queued", "running"):
                break
            self.one_round_of_a_living_worker()
        assert not self.jobs("queued", "running"), "a job never came to its end"
        self.the_queue_is_as_the_model_says()
        self.pass_time(2_000_000)
        while self.jobs():
            self.prune()
        for lane in LANES:
            self.tickets_go_astray(lane, "all lost")
        self.the_queue_is_as_the_model_says()
        invariants.check_nothing_is_left(self.queue.server.contents())

    def one_round_of_a_living_worker(self) -> None:
        self.pass_time(LEASE_MS)
        self.wake()
        self.reap()
        self.ring_lost()
        for lane in LANES:
            while self.store.redis.llen(lane):
                self.claim(lane, "fresh", has_ticket=True, frozen_ms=0)
                for job in self.jobs("running"):
                    if job.worker == "fresh":
                        self.finish_both(job, job.attempt, "succeeded")


ROUNDS = 200
"""Each is a lease long: longer than any delay, quiet time or probation, one after the other for every job."""


def ids(jobs: Sequence[Any]) -> list[str]:
    return [job.id for job in jobs]


def check_record(found: Any, job: ModelJob) -> None:
    """JobStore's own reading of a record."""
    for name in ("owner", "kind", "model", "lane", "state", "attempt", "crashes", "retries", "worker", "sequence"):
        assert getattr(found, name) == getattr(job, name), name
    for name in ("cancel_requested", "paused", "dead", "requeued_from", "requeued_as", "webhook_note"):
        assert getattr(found, name) == getattr(job, name), name
    for name in ("created_at", "not_before", "deadline", "started_at", "finished_at"):
        at = getattr(job, name)
        assert getattr(found, name) == (None if at is None else at / 1000), name
    for name in ("progress", "checkpoint", "result"):
        value = getattr(found, name)
        assert (None if value is None else compact(value)) == getattr(job, name), name
    assert found.priority == PRIORITIES[job.priority]
    assert (found.failure.model_dump_json() if found.failure else None) == job.failure
