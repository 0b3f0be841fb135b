"""The server's clock is the only clock: workers whose own is off by a minute change nothing."""

from tandem.specs import Scheduling
from tests.chaos.stage import STEADY_LEASE_SECONDS, Stage

JOBS = 30
DELAY_SECONDS = 0.5
LATER = Scheduling(delay_seconds=DELAY_SECONDS, deadline_seconds=50.0)
"""By a clock that is a minute ahead, it expires at once; by one that is behind, it starts a minute late."""


def test_workers_with_wrong_clocks_lose_nothing_and_hurry_nothing(stage: Stage) -> None:
    """No lease is thought to be over, no delay to have passed, no deadline to have come."""
    workers = [
        stage.worker(clock_seconds=seconds, lease_seconds=STEADY_LEASE_SECONDS) for seconds in (-60.0, 0.0, 60.0)
    ]
    for number in range(JOBS):
        stage.submit(f"now-{number}", work_seconds=0.05)
        stage.submit(f"later-{number}", work_seconds=0.05, scheduling=LATER)
    stage.submit("long", work_seconds=2.5)
    stage.wait_ended()
    assert all(worker.is_alive() for worker in workers), stage.logs()
    tally = stage.audit()
    assert (tally.ended, tally.attempts, tally.crashes) == ({"succeeded": 2 * JOBS + 1}, 2 * JOBS + 1, 0)
    produced = stage.books().produced
    minutes_off = set()
    for job in stage.jobs.list(limit=tally.jobs):
        assert job.started_at is not None
        assert job.finished_at is not None
        minutes_off.add(round((produced[job.id, 1].wall - job.finished_at) / 60))
        if job.spec["key"].startswith("later"):
            assert DELAY_SECONDS <= job.started_at - job.created_at < 30.0
    assert minutes_off == {-1, 0, 1}, "each worker had its share, and its own time"
