"""What the job store's single calls cost: one client, no worker, one call at a time."""

from collections import defaultdict

from bench.sides.tandem_jobs import LANE, MODEL, WORKER, job_store
from bench.timing import quantiles_ms, timed
from tandem.job import JobState
from tandem.job_store import Claim, JobStore

RUNNING = 32
"""Attempts that one renewal extends: the sequences that an engine runs by default."""
LIST = "bench"
BARE = "LPUSH, then BRPOP"
RENEWAL = f"renew of {RUNNING}"
OWNER = "bench"


def measure_calls(url: str, *, calls: int, warm_up: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each call, and of LPUSH and BRPOP together, on the same server by the same client."""
    jobs = job_store(url)
    try:
        _time_calls(jobs, max(warm_up, RUNNING))
        return {name: quantiles_ms(seconds) for name, seconds in _time_calls(jobs, max(calls, RUNNING)).items()}
    finally:
        jobs.close()


def _time_calls(jobs: JobStore, count: int) -> dict[str, list[float]]:
    """Seconds of each: so many jobs are submitted, then claimed, renewed, then finished."""
    seconds: dict[str, list[float]] = defaultdict(list)
    claims: list[Claim] = []

    def submit() -> None:
        jobs.submit(kind="inference", model=MODEL, lane=LANE, owner=OWNER, spec={})

    def claim() -> None:
        granted = jobs.claim(LANE, WORKER)
        if granted is None:
            raise RuntimeError("a lane with jobs gave none")
        claims.append(granted)

    def bare() -> None:
        jobs.redis.lpush(LIST, "")
        jobs.redis.brpop([LIST])

    for _ in range(count):
        seconds[BARE].append(timed(bare))
        seconds["submit"].append(timed(submit))
    for _ in range(count):
        seconds["claim"].append(timed(claim))
    fences = {granted.job.id: granted.fence for granted in claims[:RUNNING]}
    for _ in range(count):
        seconds[RENEWAL].append(timed(lambda: _renew(jobs, fences)))
    for granted in claims:
        seconds["finish"].append(timed(lambda: finish(jobs, granted)))  # noqa: B023  # called at once
    return seconds


def _renew(jobs: JobStore, fences: dict[str, int]) -> None:
    if stopped := jobs.renew(WORKER, fences):
        raise RuntimeError(f"running attempts were told to stop: {stopped}")


def finish(jobs: JobStore, claim: Claim, result: object = 1) -> None:
    jobs.finish(claim.job.id, claim.fence, JobState.SUCCEEDED, result=result)
