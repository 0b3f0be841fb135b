"""One collection of a service's artifacts: one at a time, and only of a store that belongs to this queue."""

import uuid

from tandem.artifact_collection import Collected, collect, references_of
from tandem.errors import ConfigurationError
from tandem.function_library import PREFIX
from tandem.services import Services

BEGUN = f"{PREFIX}collecting"
"""Whoever sets it collects; it expires, so that the next one can."""
QUEUE = f"{PREFIX}artifact_store"
"""This queue's name for itself; the artifact store's document of the same content says whose it is."""
DOCUMENT = "queue-of-this-store.txt"


def collect_artifacts(services: Services, *, dry_run: bool = False) -> Collected:
    """Delete what nothing refers to.

    Raises QueueUnavailable, OSError, and ConfigurationError if the store belongs to another queue, whose records
    refer to artifacts that this one knows nothing of.
    """
    _check_owner(services)
    if not dry_run:
        # Their records are gone already; what is left is their place in the list.
        services.files.forget_expired()
        services.batches.forget_expired()
    references = references_of(services.jobs, services.files, services.adapters, services.batches)
    return collect(services.artifacts, references, dry_run=dry_run)


def collect_if_due(services: Services, *, interval_seconds: float) -> Collected | None:
    """The same, for one of many workers; None if a collection was begun within the interval."""
    with services.jobs.guard():
        if not services.jobs.redis.set(BEGUN, 1, nx=True, px=int(interval_seconds * 1000)):
            return None
    return collect_artifacts(services)


def _check_owner(services: Services) -> None:
    with services.jobs.guard():
        services.jobs.redis.set(QUEUE, uuid.uuid4().hex, nx=True)
        queue = str(services.jobs.redis.get(QUEUE))
    services.artifacts.publish(DOCUMENT, queue.encode())
    if services.artifacts.published(DOCUMENT) != queue.encode():
        raise ConfigurationError(
            f"TANDEM_ARTIFACTS_URL is the store of another queue than TANDEM_REDIS_URL (its {DOCUMENT} says so); "
            "nothing is deleted. If that queue is gone for good, delete the document",
            param="TANDEM_ARTIFACTS_URL",
        )
