"""Responses: jobs that were asked for by `POST /v1/responses`, seen as what their clients know of.

A response is its job: the id follows from the job's, and what was asked stands in the job's spec (specs/response.py).
Key: `tandem:response-deleted:<job id>`, a mark that the response is shown no more; it expires after the job.
"""

from typing import Literal

from tandem.errors import UnknownJob, UnknownResponse
from tandem.function_library import PREFIX
from tandem.job import Job, JobState
from tandem.job_store import JobStore
from tandem.settings import Settings

JOB, RESPONSE = "job_", "resp_"
MARGIN_SECONDS = 3600.0
"""How much longer a mark is kept than an ended job: a running one ends soon after it was cancelled."""

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
STATUS: dict[JobState, ResponseStatus] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    # OpenAI's responses have no deadline: one that was not met is a failure.
    JobState.EXPIRED: "failed",
}


class ResponseStore:
    """Finds the jobs of responses. Every method raises QueueUnavailable."""

    def __init__(self, settings: Settings, jobs: JobStore) -> None:
        self._jobs = jobs
        self._mark_ms = round((settings.result_seconds + MARGIN_SECONDS) * 1000)

    def get(self, response_id: str, owner: str | None, *, param: str = "response_id") -> Job:
        """The job of an owner's response, or of anybody's (None). Raises UnknownResponse, also for one of another
        owner, a deleted one, and one that was asked for with `store: false`.
        """
        unknown = UnknownResponse(f"there is no response {response_id!r}, or its time to live is over", param=param)
        if not response_id.startswith(RESPONSE):
            raise unknown
        job_id = JOB + response_id.removeprefix(RESPONSE)
        try:
            job = self._jobs.get(job_id, owner=owner)
        except UnknownJob:
            raise unknown from None
        asked = job.spec.get("response")
        if asked is None or asked["request"].get("store") is False:
            raise unknown
        with self._jobs.guard():
            if self._jobs.redis.exists(_deleted(job_id)):
                raise unknown
        return job

    def delete(self, response_id: str, owner: str | None) -> None:
        """Show a response no more, and stop its job if it has not ended. Raises UnknownResponse."""
        job = self.get(response_id, owner)
        with self._jobs.guard():
            self._jobs.redis.set(_deleted(job.id), 1, px=self._mark_ms)
        self._jobs.cancel(job.id)


def response_id(job_id: str) -> str:
    """The id of the response that a job answers."""
    return RESPONSE + job_id.removeprefix(JOB)


def is_background(job: Job) -> bool:
    """Whether a job was asked for as a response in the background: its end is an event for its owner's webhooks."""
    asked = job.spec.get("response")
    return asked is not None and asked["request"].get("background") is True


def response_status(job: Job) -> ResponseStatus:
    """How the response stands: a text that its limit has cut is `incomplete`."""
    status = STATUS[job.state]
    is_cut = status == "completed" and job.result.get("finish_reason") == "length"
    return "incomplete" if is_cut else status


def _deleted(job_id: str) -> str:
    return f"{PREFIX}response-deleted:{job_id}"
