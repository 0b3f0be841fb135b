"""Deleting artifacts that nothing refers to, and never one that something does.

Blobs are shared by content, so deleting a job, a file or an adapter leaves its blobs; this collects them. It runs
beside everything else that reads and writes the store, and beside other collectors. Why no live blob is lost:

1. A reference is written only within half the grace after its blob was put or refreshed (ArtifactStore.put_stream,
   ArtifactStore.refresh): to copy a digest from one record into another, refresh it first.
2. Putting or refreshing makes the blob young: on a local file system always, on an object store when it is older than
   half the grace.
3. Candidates are blobs older than the grace. The references are read after the candidates were listed.
4. A reference that this reading missed was written after it, so its blob was put less than half a grace before. Its
   age is looked at again when it is deleted, and it is found young, provided that no more than the other half of the
   grace has passed since the reading: a collection ends itself long before.

What is looked at and what is deleted cannot change between the two: a local blob is first moved aside, where nobody
makes it younger any more, then looked at, and moved back if it is young. An object store cannot do this, so there the
blob is copied to the trash before it is deleted, and leaves the trash only after another whole grace without a
reference; a blob that is referred to after all is moved back by the next collection, and readers find it in the trash
meanwhile.

Ages are the collector's clock against the file system's: the two must agree within a small part of the grace.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from tandem.artifacts import GRACE_SECONDS, ArtifactStore


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection has done; with `dry_run`, what it would do."""

    deleted: int
    """Blobs, and leftovers of writes that never ended."""
    bytes: int
    """Their size. On an object store they stay in the trash for one more grace."""
    kept: int
    """Blobs that are referred to, or too young to judge."""


class Referrer(Protocol):
    """A store whose records refer to artifacts."""

    def artifact_references(self) -> Iterable[str]:
        """The digests that its records hold, each at least once."""
        ...


def references_of(*referrers: Referrer) -> Callable[[], Iterator[str]]:
    """Every digest that one of these stores refers to, read when it is called."""
    return lambda: chain.from_iterable(referrer.artifact_references() for referrer in referrers)


def collect(
    artifacts: ArtifactStore,
    references: Callable[[], Iterable[str]],
    *,
    grace_seconds: float = GRACE_SECONDS,
    now: Callable[[], float] = time.time,
    dry_run: bool = False,
) -> Collected:
    """Delete every blob that is older than the grace and that no record refers to.

    `references` is called once and must name every digest of every record, or raise: nothing is deleted then. `now`
    tells seconds since the epoch. Raises ValueError for a grace shorter than the store's own.
    """
    if grace_seconds < GRACE_SECONDS:
        raise ValueError(
            f"grace_seconds is {grace_seconds:g}; writers make a blob young again by {GRACE_SECONDS:g} s, so it must "
            "be at least as long"
        )
    oldest_kept = now() - grace_seconds
    blobs = list(artifacts.blobs())
    trash = list(artifacts.trash())
    leftovers = [blob for blob in artifacts.incoming() if blob.modified < oldest_kept]
    candidates = [blob for blob in blobs if blob.modified < oldest_kept]
    kept = len(blobs) - len(candidates)
    started = now()
    live = frozenset(references())

    deleted, size = 0, 0
    for blob in candidates:
        # Half of the grace is what writers may take; a quarter leaves room for clocks that differ.
        in_time = now() - started < grace_seconds / 4
        unused = blob.name not in live
        if unused and in_time and (dry_run or artifacts.discard(blob.name, older_than=oldest_kept)):
            deleted, size = deleted + 1, size + blob.size
        else:
            kept += 1
    for blob in leftovers:
        deleted, size = deleted + 1, size + blob.size
        if not dry_run:
            artifacts.delete_incoming(blob.name)
    for blob in trash:
        if dry_run:
            continue
        if blob.name in live:
            artifacts.restore(blob.name)
        else:
            artifacts.empty_trash(blob.name, older_than=oldest_kept)
    return Collected(deleted, size, kept)
