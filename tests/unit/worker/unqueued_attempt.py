"""An attempt at a job that no queue knows, for tests of what runs jobs."""

from typing import Any

from tandem.job import Job, JobState
from tandem.job_store import Claim
from worker.attempt import Attempt


class UnqueuedAttempt(Attempt):
    """Its kinds keep what is reported; nothing else of it is written."""

    def __init__(self) -> None:
        no_store: Any = None
        job = Job(
            id="job-1",
            kind="inference",
            state=JobState.RUNNING,
            owner="o",
            model="tiny",
            lane="inference.tiny",
            spec={},
            created_at=0.0,
            sequence=1,
        )
        super().__init__(Claim(job, 1, None), no_store, lambda _attempt: None)
