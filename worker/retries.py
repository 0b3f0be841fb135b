"""When an attempt that failed for a passing reason is repeated."""

import random

from tandem.job import Failure, Job
from tandem.specs import RetryPolicy

JITTER = 0.5
"""Up to so much of a pause is left to chance, so that what failed together does not come back together."""


def retry_delay(policy: RetryPolicy, retries: int, chance: float) -> float:
    """Seconds before the repetition after `retries` earlier ones; `chance` is uniform in [0, 1)."""
    # Capped before the power: 2 ** 20 times an hour is no pause.
    full = min(policy.backoff_seconds * 2.0**retries, policy.max_backoff_seconds)
    return full * (1 - JITTER * chance)


def next_try(job: Job, failure: Failure) -> float | None:
    """In how many seconds the job is tried again; None if it has failed for good."""
    policy = job.retry
    if not failure.retryable or job.retries >= policy.max_retries:
        return None
    return retry_delay(policy, job.retries, random.random())  # noqa: S311  # no secret hangs on a pause
