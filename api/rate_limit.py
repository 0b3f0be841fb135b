"""What a key may still queue, as the headers that OpenAI's clients know."""

from dataclasses import dataclass

from tandem.api_keys import ApiKey
from tandem.job_reads import JobReader

STATE = "rate_limit"
"""Where a request's state has the RateLimit that its answer is to show."""
UNKNOWN_RESET_SECONDS = 30.0
"""While nothing of the owner's has ended lately, so that nobody can tell."""
HEADERS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Of one key: its `max_queued`, which counts jobs that wait, and not requests in a time."""

    limit: int
    remaining: int
    """Jobs that could be queued now."""
    reset_seconds: float
    """Until all that is queued has begun, at the pace of the last minute."""

    def headers(self) -> dict[str, str]:
        values = (str(self.limit), str(self.remaining), duration(self.reset_seconds))
        return dict(zip(HEADERS, values, strict=True))


def rate_limit(key: ApiKey, jobs: JobReader) -> RateLimit | None:
    """As it is after one more job of the key; None for a key without a limit. Raises QueueUnavailable."""
    if key.max_queued is None:
        return None
    queue = jobs.owner_queue(key.owner)
    queued = queue.queued + 1
    reset = queued / queue.ended_per_second if queue.ended_per_second else UNKNOWN_RESET_SECONDS
    return RateLimit(key.max_queued, max(key.max_queued - queued, 0), reset)


def duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `7s`, `6m0s`, `1h2m3s`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
