"""A worker that stands in for a fleet: it takes every chat at once and tells each one piece of text after the other.

No model runs: what the API does with very many streams is what is measured, and no machine of two cores writes a
thousand texts at the same time.
"""

import time
from collections import Counter, deque
from multiprocessing.synchronize import Event

from tandem.artifacts import ArtifactStore
from tandem.job import JobState
from tandem.job_store import Claim, JobStore
from tandem.settings import Settings
from tandem.tickets import lane

MODEL = "smollm2-135m-instruct"
PIECE = "word "
WORKER = "trickle"
LEASE_SECONDS = 600.0
"""Longer than the whole measurement: nothing renews it."""
PIECE_SECONDS = 1.0
"""Between two pieces of one text."""
LOOK_SECONDS = 0.005
"""Between two looks for jobs while nothing is due."""


def work(url: str, artifacts: str, is_enough: Event) -> None:
    """Tell every job's text piece by piece until `is_enough`; then end them all with what they were told.

    The body of a process of its own.
    """
    jobs = JobStore(Settings(redis_url=url, lease_seconds=LEASE_SECONDS), ArtifactStore(artifacts))
    told: Counter[str] = Counter()
    due: deque[tuple[float, Claim]] = deque()
    while not is_enough.is_set():
        claim = jobs.claim(lane("inference", MODEL), WORKER)
        if claim is not None:
            due.appendleft((time.monotonic(), claim))
        elif not due or due[0][0] > time.monotonic():
            time.sleep(LOOK_SECONDS)
            continue
        at, claim = due.popleft()
        jobs.report(claim.job.id, claim.fence, [("tokens", {"text": PIECE})])
        told[claim.job.id] += 1
        due.append((at + PIECE_SECONDS, claim))
    for _, claim in due:
        pieces = told[claim.job.id]
        result = {
            "generated_text": PIECE * pieces,
            "finish_reason": "length",
            "prompt_tokens": 1,
            "completion_tokens": pieces,
            "path": "engine",
        }
        jobs.finish(claim.job.id, claim.fence, JobState.SUCCEEDED, result=result)
    jobs.close()
