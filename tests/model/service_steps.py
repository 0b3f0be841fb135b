"""Steps of a run that users, operators, time, sweeps and mishaps make."""

from tandem.redis_connection import ANSWER_SECONDS
from tests.model import invariants
from tests.model.action import action
from tests.model.attempt_steps import AttemptSteps
from tests.model.life_model import LEASE_MS
from tests.model.queue_under_test import is_accepted
from tests.model.ready_model import ModelJob
from tests.model.side_by_side import BUSY_LANES, LANES, LOST, STEPS_MS, WHICH
from tests.model.workers_model import PROBATION_MS


class ServiceSteps(AttemptSteps):
    # What users and operators ask for

    @action(14, when=lambda self: self.jobs(), number=WHICH, wish=("cancel", "pause", "resume", "resume"))
    def tell(self, number: int, wish: str) -> None:
        jobs = [job for job in self.jobs() if job.paused] if wish == "resume" else self.jobs("queued", "running")
        self.tell_both((jobs or self.jobs())[number % len(jobs or self.jobs())], wish)

    @action(
        5,
        when=lambda self: self.jobs("running"),
        number=WHICH,
        stops=(True, False),
        wish=("pause", "pause", "cancel"),
    )
    def interrupt(self, number: int, stops: bool, wish: str) -> None:
        """A running job's attempt learns of it at its next renewal, and gives the job back."""
        job = self.pick(number, "running")
        self.tell_both(job, wish)
        self.renew(job.worker or "")
        if stops:
            fence = job.attempt
            wanted = self.model.release(job.id, fence)
            assert is_accepted(lambda: self.store.release(job.id, fence)) == wanted

    def tell_both(self, job: ModelJob, wish: str) -> None:
        getattr(self.model, wish)(job.id)
        assert getattr(self.store, wish)(job.id).state == job.state

    @action(2, lane=(*LANES, "*"))
    def pause_lane(self, lane: str) -> None:
        self.model.pause_lane(lane)
        self.store.pause_lane(lane)

    @action(10, when=lambda self: self.model.paused, number=WHICH)
    def resume_lane(self, number: int) -> None:
        paused = sorted(self.model.paused)
        self.resume_lane_both(paused[number % len(paused)])

    def resume_lane_both(self, lane: str) -> None:
        self.model.resume_lane(lane)
        self.store.resume_lane(lane)

    # Time, and the sweeps

    @action(12, milliseconds=STEPS_MS)
    def time_passes(self, milliseconds: int) -> None:
        self.pass_time(milliseconds)

    @action(16, what=("reap", "wake", "wake", "ring_lost", "prune", "restart", "late reap"))
    def sweep(self, what: str) -> None:
        getattr(self, what.replace(" ", "_"))()

    @action(
        9, when=lambda self: self.jobs("running"), do_others_live=(True, False), is_one_cancelled=(False, False, True)
    )
    def w1_dies(self, do_others_live: bool, is_one_cancelled: bool) -> None:
        """Its leases are renewed no more, and a living worker's sweep finds them."""
        if is_one_cancelled and self.jobs("running"):
            self.tell_both(self.jobs("running")[0], "cancel")
        self.pass_time(LEASE_MS // 2)
        for worker in ("w2", "w3") if do_others_live else ():
            self.renew(worker)
        self.pass_time(LEASE_MS // 2)
        self.reap()

    @action(6, lane=BUSY_LANES, is_next_idle=(True, False))
    def a_busy_worker_dies(self, lane: str, is_next_idle: bool) -> None:
        """With two jobs: neither is known to be the culprit, so each runs alone next, on an idle worker."""
        for owner in ("a", "b", "a", "b"):
            self.submit(owner, lane, 2, 0, None, ("", 0), "x", is_time_of_day=False, is_other=False, repeats=0)
        for worker in ("w2", "w1", "w1"):
            self.claim(lane, worker, has_ticket=True, frozen_ms=0)
        self.w1_dies(do_others_live=True, is_one_cancelled=False)
        self.claim(lane, "w1" if is_next_idle else "w2", has_ticket=True, frozen_ms=0)

    @action(4, when=lambda self: any(job.worker == "w1" for job in self.jobs("running")))
    def w1_lives_long(self) -> None:
        """So that its jobs are trusted."""
        for _ in range(PROBATION_MS // LEASE_MS + 1):
            self.pass_time(LEASE_MS - 1)
            self.renew("w1")

    def reap(self) -> None:
        assert self.store.reap() == self.model.reap(LOST.model_dump_json())

    def late_reap(self) -> None:
        """The server was frozen, and gets to the call when nobody waits for the answer."""
        self.move_server(round(ANSWER_SECONDS * 1000) + 1)
        assert self.store.reap() == (0, 0)

    def restart(self) -> None:
        """A new process of the server has a new run id; the first sweep after it sees that."""
        if self.store.redis.exists("tandem:run_id"):
            self.store.redis.set("tandem:run_id", "an-earlier-process")
            self.model.server_restarts()
        self.reap()

    def wake(self) -> None:
        assert self.store.wake() == self.model.wake()

    def ring_lost(self) -> None:
        assert self.store.ring_lost() == self.model.ring_lost()
        invariants.check_tickets(self.queue.server.contents())

    def prune(self) -> None:
        assert self.store.prune() == self.model.prune()

    # Tickets, nudges, webhooks

    @action(4, lane=LANES, mischief=("lost", "all lost", "repeated", "forged"))
    def tickets_go_astray(self, lane: str, mischief: str) -> None:
        redis, tickets = self.store.redis, self.model.tickets
        if mischief == "all lost":
            redis.delete(lane)
            tickets[lane] = 0
        elif mischief == "lost" and redis.rpop(lane) is not None:
            tickets[lane] -= 1
        elif mischief == "repeated" and (ticket := redis.lindex(lane, 0)) is not None:
            redis.lpush(lane, ticket)
            tickets[lane] += 1
        elif mischief == "forged":
            redis.lpush(lane, "no ticket at all")
            tickets[lane] += 1

    @action(3, when=lambda self: self.model.nudges, number=WHICH)
    def take_nudge(self, number: int) -> None:
        nudged = sorted(self.model.nudges)
        worker = nudged[number % len(nudged)]
        assert self.store.wait_for_nudge(worker), f"{worker} was to be nudged"
        ids, until = self.model.nudges.pop(worker)
        if ids[1:]:
            self.model.nudges[worker] = ids[1:], until

    @action(3, when=lambda self: any(job.webhook_at is not None for job in self.jobs()), limit=(1, 2))
    def take_webhooks(self, limit: int) -> None:
        due = self.store.take_webhooks(limit, 5.0)
        assert [(one.job_id, one.deliveries) for one in due] == self.model.take_webhooks(limit, 5000)

    @action(
        3,
        when=lambda self: any(job.webhook for job in self.jobs()),
        number=WHICH,
        retry_ms=(None, 1000, 60_000),
        is_known=(True, True, False),
    )
    def settle_webhook(self, number: int, retry_ms: int | None, is_known: bool) -> None:
        hooked = [job.id for job in self.jobs() if job.webhook]
        job_id = hooked[number % len(hooked)] if is_known else "job_that_never_was"
        self.model.settle_webhook(job_id, retry_ms, "noted")
        self.store.settle_webhook(job_id, retry_in=None if retry_ms is None else retry_ms / 1000, note="noted")
