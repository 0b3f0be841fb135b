"""What an upgrade of Celery or kombu must not break: our settings and the wake hook stand against known faults.

docs/decisions/0001 tells the faults; these tests fail when a new version brings one of them back.
"""

import itertools
import statistics
import time

from tests.chaos.stage import STEADY_LEASE_SECONDS, Stage
from tests.valkey_server import ValkeyServer

MANY = 60
SLOT_GAP_SECONDS = 0.15
"""Between a job's end and the next one's start on the same thread. 5 ms with the wake hook, up to 600 without."""
AWAY_SECONDS = 1.0
"""Long enough for a first try to connect to fail."""


def test_a_worker_survives_a_restart_of_redis_while_jobs_run_and_threads_are_free(
    own_stage: Stage, own_valkey: ValkeyServer
) -> None:
    """Celery 5.7.0 died with an AttributeError when a message was unacknowledged and prefetch credit was left."""
    worker = own_stage.worker(threads=6, lease_seconds=STEADY_LEASE_SECONDS)
    for number in range(3):
        own_stage.submit(f"running-{number}", work_seconds=1.5)
    own_stage.wait_until(lambda: own_stage.jobs.counts()["running"] == 3, "three of six threads are busy")
    own_valkey.sync()
    own_valkey.kill()
    own_valkey.restart()
    for number in range(12):
        own_stage.submit(f"after-{number}")
    own_stage.wait_ended()
    assert worker.is_alive(), own_stage.logs()
    tally = own_stage.audit()
    assert (tally.ended, tally.attempts) == ({"succeeded": 15}, 15)


def test_a_worker_survives_redis_being_away_for_a_while(own_stage: Stage, own_valkey: ValkeyServer) -> None:
    """It connects again by itself, however often it failed to, and takes new jobs."""
    worker = own_stage.worker()
    own_stage.submit("before")
    own_stage.wait_ended()
    for number in range(2):
        own_valkey.sync()
        own_valkey.kill()
        time.sleep(AWAY_SECONDS)  # as long as it is away
        own_valkey.restart()
        own_stage.submit(f"after-{number}")
        own_stage.wait_ended()
    assert worker.is_alive(), own_stage.logs()
    assert own_stage.audit().ended == {"succeeded": 3}


def test_a_freed_thread_takes_the_next_job_at_once(stage: Stage) -> None:
    """Early acknowledgement with prefetch disabled left up to 600 ms between a job's end and the next ticket."""
    for number in range(MANY):
        stage.submit(f"job-{number}", work_seconds=0.01)
    stage.worker(threads=1)
    stage.wait_ended()
    attempts = sorted(stage.books().produced.values(), key=lambda produced: produced.started)
    gaps = [later.started - earlier.ended for earlier, later in itertools.pairwise(attempts)]
    assert len(gaps) == MANY - 1
    assert statistics.median(gaps) < SLOT_GAP_SECONDS, f"gaps in ms: {[round(gap * 1000) for gap in gaps]}"
