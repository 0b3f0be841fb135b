"""The types of events that an endpoint may ask for: OpenAI's, as far as there is something to tell, and our own."""

from typing import Literal, get_args

EventType = Literal[
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "response.completed",
    "response.failed",
    "response.cancelled",
    "response.incomplete",
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "job.expired",
]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
