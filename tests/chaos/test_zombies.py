"""Workers that come back from the dead: frozen for longer than their lease, thawed when others have their jobs."""

import signal

from tandem.job import JobState
from tests.chaos.stage import STEADY_LEASE_SECONDS, Stage

LEASE_SECONDS = 0.5
ZOMBIES = 5
WORK_SECONDS = 0.3


def test_what_a_zombie_answers_is_refused_and_the_other_result_stands(stage: Stage) -> None:
    """Each attempt answers another result, and the zombies' answers do come: they are deaf to being told to stop."""
    for number in range(ZOMBIES):
        job_id = stage.submit(f"deaf-{number}", work_seconds=WORK_SECONDS, deaf=True)
        zombie = stage.worker(lease_seconds=LEASE_SECONDS)
        wait_for(stage, job_id, JobState.RUNNING)
        zombie.signal(signal.SIGSTOP)
        alive = stage.worker(lease_seconds=STEADY_LEASE_SECONDS)
        wait_for(stage, job_id, JobState.SUCCEEDED)
        accepted = stage.jobs.get(job_id)
        zombie.signal(signal.SIGCONT)
        wait_for_answers(stage, 2 * (number + 1))
        for worker in (zombie, alive):
            worker.kill()
        assert stage.jobs.get(job_id) == accepted
        assert accepted.attempt == 2
    tally = stage.audit()
    assert (tally.jobs, tally.refused) == (ZOMBIES, ZOMBIES)


def wait_for(stage: Stage, job_id: str, state: JobState) -> None:
    stage.wait_until(lambda: stage.jobs.get(job_id).state is state, f"it has {state}")


def wait_for_answers(stage: Stage, count: int) -> None:
    stage.wait_until(lambda: len(stage.books().produced) == count, "the zombie has answered too")
