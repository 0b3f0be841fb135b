"""A producer: submits jobs one after another, each with its idempotency key, and notes what was acknowledged.

A submission whose answer was lost is repeated with the same key until it is answered, as clients are told to do. The
number of the next job is kept in a file, so that a producer that was killed is followed by one that repeats its last.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.artifacts import ArtifactStore
from tandem.errors import QueueFull, QueueUnavailable
from tandem.job_store import JobStore
from tandem.settings import Settings
from tandem.specs import PRIORITIES, Scheduling
from tests.chaos.ledger import Ledger

DEAF_SHARE = 0.5
"""Of all jobs: their attempts answer even if they were lost meanwhile."""
AWAY_SECONDS = 0.1
"""Between two tries while the queue cannot be reached."""


@dataclass(frozen=True, slots=True)
class ProducerOptions:
    redis_url: str
    folder: str
    lanes: Sequence[str]
    name: str
    """Its jobs' keys are `<name>-<number>`; it is their owner as well."""
    seed: int
    jobs: int
    """It ends after so many, counted with those of its predecessors of the same name."""
    pause_seconds: float = 0.0
    """Between two jobs."""


def spec_of(key: str, seed: int) -> tuple[dict[str, Any], Scheduling]:
    """What is asked under a key: the same each time, or a repeated submission would be another one."""
    chance = random.Random(f"{seed} {key}")
    spec: dict[str, Any] = {"key": key, "work_seconds": round(chance.uniform(0.005, 0.15), 4)}
    if chance.random() < DEAF_SHARE:
        spec["deaf"] = True
    match chance.random():
        case kind if kind < 0.04:
            spec["fails"] = True
        case kind if kind < 0.08:
            spec |= {"fails_first": 1, "retry": {"backoff_seconds": 0.05}}
        case kind if kind < 0.12:
            spec["publishes"] = True
        case kind if kind < 0.13:
            spec["answer_bytes"] = 80_000
    delay = chance.choice([0.0, 0.0, 0.0, 0.2])
    return spec, Scheduling(priority=chance.choice(PRIORITIES), delay_seconds=delay)


def is_cancelled(key: str, seed: int) -> bool:
    """Whether the producer changes its mind about this job."""
    return random.Random(f"{seed} {key} cancel").random() < 0.03


class LightProducer:
    def __init__(self, options: ProducerOptions) -> None:
        self._options = options
        settings = Settings(redis_url=options.redis_url, artifacts_url=f"file://{options.folder}/artifacts")
        self._jobs = JobStore(settings, ArtifactStore(settings.artifacts_url))
        self._ledger = Ledger(Path(options.folder))
        self._next = Path(options.folder) / f"next-{options.name}"

    def run(self) -> None:
        first = int(self._next.read_text()) if self._next.exists() else 0
        for number in range(first, self._options.jobs):
            # Replaced whole: a producer that dies while it writes leaves the old number.
            fresh = self._next.with_suffix(".fresh")
            fresh.write_text(str(number))
            fresh.replace(self._next)
            self._submit(f"{self._options.name}-{number}")
            time.sleep(self._options.pause_seconds)  # the pace of arrival; there is no event to wait for

    def _submit(self, key: str) -> None:
        lane = random.Random(key).choice(self._options.lanes)
        spec, scheduling = spec_of(key, self._options.seed)
        while True:
            try:
                submitted = self._jobs.submit(
                    kind="inference",
                    model="light",
                    lane=lane,
                    owner=self._options.name,
                    spec=spec,
                    scheduling=scheduling,
                    idempotency_key=key,
                )
            except (QueueUnavailable, QueueFull):
                self._ledger.unanswered(key)
                time.sleep(AWAY_SECONDS)  # nothing signals that the queue is back
                continue
            self._ledger.acknowledged(key, submitted.job.id)
            break
        if is_cancelled(key, self._options.seed):
            self._cancel(submitted.job.id)

    def _cancel(self, job_id: str) -> None:
        self._ledger.cancelling(job_id)
        while True:
            try:
                self._jobs.cancel(job_id)
            except QueueUnavailable:
                time.sleep(AWAY_SECONDS)  # nothing signals that the queue is back
            else:
                return


def main(options: ProducerOptions) -> None:
    LightProducer(options).run()
