"""Workers are drained one after another under load: nothing is lost, nothing fails, nobody is charged."""

import signal

from tandem.specs import Scheduling
from tests.chaos.nursery import Child
from tests.chaos.stage import STEADY_LEASE_SECONDS, Stage

WORKERS = 3
JOBS = 300
LONG_SECONDS = 30.0
"""Of jobs that outlast every grace: they are given back."""

URGENT = Scheduling(priority="urgent")


def test_a_rolling_restart_under_load_charges_nobody(stage: Stage) -> None:
    """Each worker gets SIGTERM, ends with status 0, and another takes its place, as an upgrade does it."""

    def start() -> Child:
        return stage.worker(threads=4, drain_seconds=0.3, lease_seconds=STEADY_LEASE_SECONDS)

    workers = [start() for _ in range(WORKERS)]
    long_jobs = [stage.submit(f"long-{number}", work_seconds=LONG_SECONDS, scheduling=URGENT) for number in range(3)]
    producer = stage.producer("steady", jobs=JOBS, pause_seconds=0.01)
    stage.wait_until(lambda: stage.jobs.counts()["succeeded"] >= WORKERS, "the workers are at work")
    for old in list(workers):
        old.signal(signal.SIGTERM)
        assert old.wait() == 0
        workers.append(start())
    assert producer.wait() == 0
    for job_id in long_jobs:
        job = stage.jobs.get(job_id)
        assert job.attempt >= 2, "it ran on a worker that was drained"
        stage.cancel(job_id)
    stage.wait_ended()
    tally = stage.audit()
    assert tally.crashes == 0
    assert tally.jobs == tally.acknowledged == JOBS + len(long_jobs)
