"""The messages to the URLs that jobs name themselves, signed with the operator's secret."""

from typing import Protocol

from tandem.errors import UnknownJob
from tandem.job import Job
from tandem.webhooks.outbox import Due, Message, Verdict
from tandem.webhooks.payload import Payload, message_id
from tandem.webhooks.schedule import WebhookDue
from tandem.webhooks.signature import Signer


class WebhookJobs(Protocol):
    """What is asked of the store of jobs. Every call may raise QueueUnavailable."""

    def take_webhooks(self, limit: int, lease_seconds: float) -> list[WebhookDue]:
        """Jobs whose webhook is due; for so long nobody else gets them."""

    def settle_webhook(self, job_id: str, *, retry_in: float | None, note: str) -> None:
        """Say how a try went: due again in so many seconds, or, with None, over."""

    def get(self, job_id: str) -> Job:
        """The job's record. Raises UnknownJob."""


class JobOutbox:
    """An Outbox whose keys are jobs' ids."""

    def __init__(self, jobs: WebhookJobs, signer: Signer) -> None:
        self._jobs = jobs
        self._signer = signer

    def take(self, limit: int, lease_seconds: float) -> list[Due]:
        return [Due(one.job_id, one.deliveries) for one in self._jobs.take_webhooks(limit, lease_seconds)]

    def message(self, key: str) -> Message | None:
        """None for a job that is forgotten. Raises ValueError for a record that cannot be told."""
        try:
            job = self._jobs.get(key)
        except UnknownJob:
            return None
        body = Payload.of(job).model_dump_json()
        return Message(message_id(job.id), str(job.spec["webhook"]["url"]), body, self._signer)

    def settle(self, key: str, verdict: Verdict) -> None:
        self._jobs.settle_webhook(key, retry_in=verdict.retry_in, note=verdict.note)
