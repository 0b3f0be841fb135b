"""When a webhook is tried: which jobs' messages are due, and how long after a failed try the next one is."""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MINUTE, HOUR = 60.0, 3600.0

PAUSES = (5.0, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR)
"""Seconds between a failed try and the next, as Standard Webhooks suggests: three days and four hours together, so
that a receiver that is down over a weekend still hears."""
TRIES = len(PAUSES) + 1
"""The first is made at once."""
JITTER = 0.1
"""A pause is up to this part longer or shorter, so that what failed together does not come back together."""
LONGEST_RETRY_AFTER = 24 * HOUR
"""A receiver that asks for a longer pause is asked again after this one, the longest of the schedule."""


@dataclass(frozen=True, slots=True)
class WebhookDue:
    """A job whose webhook is to be tried now."""

    job_id: str
    deliveries: int
    """Tries that have failed so far."""


def pause_after(tries: int, *, retry_after: float | None, chance: float) -> float | None:
    """Seconds from the `tries`-th failed try to the next; None after the last one.

    The receiver's own wish (`retry_after`, seconds) counts where it is the longer one, up to LONGEST_RETRY_AFTER.
    `chance` is a random number in [0, 1).
    """
    assert tries >= 1, "the first try needs no pause"
    if tries >= TRIES:
        return None
    pause = PAUSES[tries - 1] * (1.0 + JITTER * (2.0 * chance - 1.0))
    return max(pause, min(retry_after or 0.0, LONGEST_RETRY_AFTER))


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """The pause that a Retry-After header asks for, in seconds or as a date; None without a readable one."""
    if header is None:
        return None
    header = header.strip()
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    if until.tzinfo is None:
        # `-0000`, which HTTP does not allow, yields a time without a zone.
        until = until.replace(tzinfo=UTC)
    return max((until - now).total_seconds(), 0.0)
