"""What a producer may say about when and how a job is run; `tandem.specs.Scheduling` has the limits."""

from collections.abc import Mapping
from typing import Any, TypedDict

from tandem.specs import Priority


class SchedulingOptions(TypedDict, total=False):
    """Keyword arguments of every call that submits."""

    priority: Priority
    """`low`, `normal`, `high` or `urgent`."""
    delay_seconds: float
    """Start no earlier than so long after submission."""
    not_before: float
    """Start no earlier than this time, in seconds since the epoch; instead of `delay_seconds`."""
    deadline_seconds: float
    """So long after submission the job expires: whoever waits gets DeadlineExceeded."""
    retry: Mapping[str, Any]
    """`{"max_retries": 5, "backoff_seconds": 2, "max_backoff_seconds": 600}`; what is left out has its default."""
    webhook: str
    """A URL to tell that the job has ended."""
    metadata: Mapping[str, str]
    """Labels of yours; they come back with the job."""


def scheduling_fields(options: SchedulingOptions) -> dict[str, Any]:
    """The options as fields of a job's spec. One that is unknown goes along: the service refuses it by its name."""
    fields: dict[str, Any] = dict(options)
    if "webhook" in fields:
        fields["webhook"] = {"url": fields["webhook"]}
    return fields
