"""What a call to the queue's Redis server can end in: one error of ours for every way in which it cannot be used."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from tandem.errors import QueueUnavailable

HUNG_SECONDS = 0.3
"""For so long after a call timed out the next ones are not made: longer than a queue of threads takes to be told,
shorter than anybody's pause before a second try."""
UNABLE = ("NOREPLICAS", "MISCONF", "MASTERDOWN", "BUSY ")
"""How a server's answer begins that for now takes no write: it has too few replicas, cannot write its append-only
file, has lost its primary, or runs a script that does not end. (redis-py has no class of error for these.)"""
REFUSED_IN_FUNCTION = "ACL failure in script"
"""How its answer begins where a function did what its caller may not. (Outside functions, redis-py has a class.)"""


@contextmanager
def queue_errors() -> Iterator[None]:
    """Turns what Redis' client raises, when the server cannot be used now, into QueueUnavailable that says why.

    It is down, hung, loading, full or a replica, no primary is known, it does not trust us, or we do not trust it.
    """
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise QueueUnavailable(_explanation(error)) from error
    except redis.ResponseError as error:
        if isinstance(error, redis.exceptions.NoPermissionError) or str(error).startswith(REFUSED_IN_FUNCTION):
            raise QueueUnavailable(
                f"the queue's Redis server does not let the user of TANDEM_REDIS_URL do this: {error}; "
                "give it the rules in deploy/users.acl"
            ) from error
        if isinstance(error, redis.ReadOnlyError | redis.OutOfMemoryError) or str(error).startswith(UNABLE):
            raise QueueUnavailable(f"the queue's Redis server takes no writes now: {error}") from error
        raise


class Outage:
    """Remembers for a moment that the server hung, so that those who wait behind a hung call are told at once.

    Without it a burst of requests is told in turns, as threads get free. Thread-safe: an assignment is one step.
    """

    def __init__(self) -> None:
        self._until = float("-inf")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """As `queue_errors`; raises QueueUnavailable without a call while the server counts as hung."""
        if time.monotonic() < self._until:
            raise QueueUnavailable("the queue's Redis server did not answer a moment ago")
        with queue_errors():
            try:
                yield
            except redis.TimeoutError:
                self._until = time.monotonic() + HUNG_SECONDS
                raise


def _explanation(error: redis.RedisError) -> str:
    # Where no Sentinel answers, the cause is what the last of them did.
    if isinstance(error, redis.AuthenticationError) or isinstance(error.__cause__, redis.AuthenticationError):
        return "the queue's Redis server (or a Sentinel) refuses the user or the password in TANDEM_REDIS_URL"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            f"the certificate of the queue's Redis server is not trusted: {error}; "
            "name the file of its CA in TANDEM_REDIS_URL, `?ssl_ca_certs=/path/ca.pem`"
        )
    return f"the queue's Redis server does not answer: {error}"
