"""Plays the worker: takes tickets and ends jobs through the real JobStore, with results written in the test.

No model runs. What a real worker answers is tested where workers are.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from tandem.artifacts import ArtifactStore
from tandem.errors import TandemError
from tandem.job import Failure, JobState
from tandem.job_store import Claim, JobStore
from tandem.settings import Role, Settings
from tandem.tickets import lane

TAKE_SECONDS = 30.0
"""How long a ticket may take to come before the test has failed."""
BLOCK_SECONDS = 0.5
"""One blocking read: shorter than the client's socket timeout, and how late a delayed job is noticed."""
WORKER = "stand-in"

CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"


def generated(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    """A text-generation result: 7 tokens of prompt, one of answer for each word."""
    return {
        "generated_text": text,
        "finish_reason": finish_reason,
        "prompt_tokens": 7,
        "completion_tokens": len(text.split()),
        "path": "engine",
    }


class StandInWorker:
    def __init__(self, settings: Settings) -> None:
        self.jobs = JobStore(settings, ArtifactStore(settings.artifacts_url))

    def take(self, model: str = CHAT_MODEL, role: Role = "inference") -> Claim:
        """Wait for a ticket of a model's lane and claim the job whose turn it is."""
        deadline = time.monotonic() + TAKE_SECONDS
        while time.monotonic() < deadline:
            self.jobs.wake()
            ticket = self.jobs.redis.brpop([lane(role, model)], timeout=BLOCK_SECONDS)
            # A lane may have more tickets than jobs: one that leads to nothing is no fault.
            if ticket is not None and (claim := self.jobs.claim(lane(role, model), WORKER)) is not None:
                return claim
        raise AssertionError(f"no job came for {model}")

    def say(self, claim: Claim, *pieces: str) -> None:
        """Report pieces of generated text."""
        self.jobs.report(claim.job.id, claim.fence, [("tokens", {"text": piece}) for piece in pieces])

    def succeed(self, claim: Claim, result: Any) -> None:
        self.jobs.finish(claim.job.id, claim.fence, JobState.SUCCEEDED, result=result)

    def fail(self, claim: Claim, error: BaseException, left: Any = None) -> None:
        """`left` is what the attempt leaves as the job's result."""
        self.jobs.finish(claim.job.id, claim.fence, JobState.FAILED, result=left, failure=Failure.of(error))

    def bury(self, claim: Claim, error: BaseException) -> None:
        """Fail for a passing reason with all tries used up: a dead letter."""
        self.jobs.finish(claim.job.id, claim.fence, JobState.FAILED, failure=Failure.of(error), is_dead=True)

    def stop(self, claim: Claim) -> None:
        """End an attempt whose cancellation was asked for."""
        self.jobs.finish(claim.job.id, claim.fence, JobState.CANCELLED)

    @contextmanager
    def working(self, work: Callable[["StandInWorker"], None]) -> Iterator[None]:
        """Run the worker's part beside the block; its errors are the block's."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="stand-in-worker") as thread:
            done = thread.submit(work, self)
            yield
            done.result(TAKE_SECONDS)

    def answering(self, result: Any, *pieces: str, model: str = CHAT_MODEL) -> Any:
        """A context in which the next job of a model gets these pieces and this result."""

        def work(worker: "StandInWorker") -> None:
            claim = worker.take(model)
            worker.say(claim, *pieces)
            worker.succeed(claim, result)

        return self.working(work)

    def answering_again(self) -> Any:
        """A context in which an attempt at the next job is lost in mid-text; the next writes "Hello to you all"."""

        def work(worker: "StandInWorker") -> None:
            lost = worker.take()
            worker.say(lost, "Hello", " to")
            worker.jobs.release(lost.job.id, lost.fence)
            again = worker.take()
            worker.say(again, "Hel", "lo to you", " all")
            worker.succeed(again, generated("Hello to you all"))

        return self.working(work)

    def failing(self, error: TandemError, model: str = CHAT_MODEL) -> Any:
        """A context in which the next job of a model fails."""
        return self.working(lambda worker: worker.fail(worker.take(model), error))
