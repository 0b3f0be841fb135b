"""Which events the end of a job is."""

from typing import Any

from tandem.job import Job, JobState
from tandem.responses import ResponseStatus, is_background, response_id, response_status
from tandem.webhooks.event_types import EventType
from tandem.webhooks.payload import Payload

OF_TRAINING: dict[JobState, EventType] = {
    JobState.SUCCEEDED: "fine_tuning.job.succeeded",
    JobState.FAILED: "fine_tuning.job.failed",
    JobState.CANCELLED: "fine_tuning.job.cancelled",
    # OpenAI's jobs have no deadline: one that was not met is a failure.
    JobState.EXPIRED: "fine_tuning.job.failed",
}
OF_RESPONSE: dict[ResponseStatus, EventType] = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
    "cancelled": "response.cancelled",
}


def events_of(job: Job) -> dict[EventType, dict[str, Any]]:
    """The events that an ended job is, and the `data` of each.

    A batch's shards are none of their owner's jobs: whoever drives the batch announces its end.
    """
    if job.kind == "batch":
        return {}
    told = Payload.of(job)
    events: dict[EventType, dict[str, Any]] = {told.type: told.data.model_dump(mode="json")}
    if job.kind == "finetune":
        events[OF_TRAINING[job.state]] = {"id": job.id}
    if is_background(job):
        events[OF_RESPONSE[response_status(job)]] = {"id": response_id(job.id)}
    return events
