"""How a long queue weighs: the time to take a job out of it, and the server's memory that each job takes."""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.job_costs import finish
from bench.sides.tandem_jobs import LANE, MODEL, WORKER, job_store
from bench.timing import quantiles_ms, timed
from tandem.function_library import FunctionLibrary
from tandem.job import JobState
from tandem.job_store import JobStore, Share
from tandem.specs import PRIORITIES, Scheduling
from tandem.tickets import ticket_message

OWNERS = 20
"""Whose jobs wait, in turn; every third of them has twice the share."""
TOGETHER = 500
"""Submissions in one round trip while the queue is filled."""
PAYLOAD_BYTES = 1024
"""Of a spec and of a result where memory is measured."""
LOOK_SECONDS = 0.05
SETTLE_SECONDS = 60.0


def measure_depths(url: str, *, depths: Sequence[int], samples: int) -> dict[str, dict[str, float]]:
    """Milliseconds of claim and finish together, by the number of queued jobs (owners and priorities mixed).

    Each job that goes is replaced, outside the timing, so that the queue stays as long as it is said to be.
    """
    jobs, numbers = job_store(url), itertools.count()
    curve: dict[str, dict[str, float]] = {}
    queued = 0
    for depth in depths:
        _fill(jobs, itertools.islice(numbers, depth - queued))
        queued = depth
        _settle(jobs)
        seconds = []
        for number in itertools.islice(numbers, samples):
            seconds.append(timed(lambda: _claim_and_finish(jobs)))
            _submit(jobs, number)
        if (left := jobs.counts()[JobState.QUEUED]) != depth:
            raise RuntimeError(f"{left} jobs are queued, and not {depth}")
        curve[f"{depth:,}"] = quantiles_ms(seconds)
    jobs.close()
    return curve


def measure_memory(url: str, *, count: int) -> dict[str, float]:
    """Bytes of the server's memory that a queued job with a 1 KB spec takes, and an ended one with a 1 KB result."""
    jobs = job_store(url)
    text = "x" * PAYLOAD_BYTES
    # The first job brings the function library, the lane's tickets and what else is there once.
    jobs.submit(kind="inference", model=MODEL, lane=LANE, owner="bench", spec={"inputs": text})
    empty = _data_bytes(jobs)
    for _ in range(count):
        jobs.submit(kind="inference", model=MODEL, lane=LANE, owner="bench", spec={"inputs": text})
    queued = _data_bytes(jobs)
    for _ in range(count):
        _claim_and_finish(jobs, result=text)
    ended = _data_bytes(jobs)
    jobs.close()
    return {"queued_job_bytes": (queued - empty) / count, "ended_job_bytes": (ended - empty) / count}


def _claim_and_finish(jobs: JobStore, result: object = 1) -> None:
    claim = jobs.claim(LANE, WORKER)
    if claim is None:
        raise RuntimeError("a lane with jobs gave none")
    finish(jobs, claim, result)


def _submit(jobs: JobStore, number: int) -> None:
    owner, weight, priority = _mixed(number)
    jobs.submit(
        kind="inference",
        model=MODEL,
        lane=LANE,
        owner=owner,
        spec={},
        scheduling=Scheduling(priority=PRIORITIES[priority]),
        share=Share(weight=weight),
    )


def _mixed(number: int) -> tuple[str, float, int]:
    """Owner, weight and priority of the job with this number: every owner has jobs of every priority."""
    owner = number % OWNERS
    return f"owner-{owner}", 2.0 if owner % 3 == 0 else 1.0, number // OWNERS % len(PRIORITIES)


def _fill(jobs: JobStore, numbers: Iterator[int]) -> None:
    """Submit many jobs as `_submit` does, but hundreds in one round trip: one at a time, 200,000 take minutes.

    So the arguments stand here as the head of `submit` in transitions/submission.lua lists them.
    """
    while batch := tuple(itertools.islice(numbers, TOGETHER)):
        _submit(jobs, batch[0])
        with jobs.redis.pipeline(transaction=False) as pipe:
            functions = FunctionLibrary(pipe, jobs.guard)
            for number in batch[1:]:
                functions.call("submit", *_arguments(number))
            answers = pipe.execute()
        if refused := [answer for answer in answers if answer[0] != "created"]:
            raise RuntimeError(f"not queued: {refused[0]}")


def _arguments(number: int) -> list[Any]:
    owner, weight, priority = _mixed(number)
    no_key, no_limit, day_ms = "", 0, 86_400_000
    record = {"owner": owner, "kind": "inference", "model": MODEL, "priority": priority, "keep_ms": day_ms}
    return [
        *(f"job_{number:024x}", owner, weight, LANE, ticket_message(LANE), "{}"),
        *(no_key, "", day_ms, no_limit, no_limit, 0, "", 0),
        *itertools.chain.from_iterable(record.items()),
    ]


def _settle(jobs: JobStore) -> None:
    """Wait until the server no longer rewrites its append-only file, which it does as that grows."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while jobs.redis.info("persistence")["aof_rewrite_in_progress"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the append-only file was not rewritten within {SETTLE_SECONDS:g} s")
        time.sleep(LOOK_SECONDS)


def _data_bytes(jobs: JobStore) -> int:
    """The server's memory, less what it holds only until it is written or sent."""
    _settle(jobs)
    memory = jobs.redis.info("memory")
    passing = memory["mem_aof_buffer"] + memory["mem_clients_normal"]
    return int(memory["used_memory"] - passing)
