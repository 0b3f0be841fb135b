"""What an attempt on a shard has answered so far, written to the artifact store every few seconds.

The parts' digests stand in the job's checkpoint, so that a later attempt does only the rest, and the batch keeps what
was done however the shard ends.
"""

import logging
import time
from typing import Any

from tandem.artifacts import ArtifactStore
from tandem.errors import QueueUnavailable
from tandem.shard_rows import RowAnswer
from worker.attempt import Attempt
from worker.runners.row_suspects import RowSuspects

log = logging.getLogger(__name__)

SAVE_SECONDS = 5.0
"""Between two parts: what a killed worker's successor does again, against a file and a call to Redis."""
SAVE_BYTES = 8 * 2**20
"""Answers in memory until a part is written all the same: rows with many log-probabilities are large."""
TELL_SECONDS = 0.5
"""Between two progress events: batches are followed at about this rate."""


class ShardAnswers:
    """Belongs to the thread that runs the shard."""

    def __init__(self, attempt: Attempt, artifacts: ArtifactStore, total: int) -> None:
        """Goes on from what an earlier attempt has left in the job's record."""
        left = attempt.job.checkpoint or {"files": {}, "done": [], "completed": 0, "failed": 0}
        self.suspects = RowSuspects(left.get("suspects"), attempt.job.crashes)
        self._attempt = attempt
        self._artifacts = artifacts
        self._total = total
        self._parts: list[str] = list(left["files"].values())
        self._done: set[int] = set(left["done"])
        self._completed, self._failed = int(left["completed"]), int(left["failed"])
        self._kept = left
        """What the parts hold, as the job's checkpoint says it."""
        self._unsaved: list[RowAnswer] = []
        self._unsaved_bytes = 0
        self._unrecorded = False
        """A part is written that the job's record does not name yet."""
        self._saved_at = self._told_at = time.monotonic()

    def has(self, row: int) -> bool:
        return row in self._done

    def add(self, answer: RowAnswer) -> None:
        """Note one more row. Raises what `save` raises."""
        self._done.add(answer.row)
        if answer.failure is None:
            self._completed += 1
        else:
            self._failed += 1
        self._unsaved.append(answer)
        self._unsaved_bytes += len(answer.line())
        if time.monotonic() - self._told_at >= TELL_SECONDS:
            self.tell()
        if self._unsaved_bytes >= SAVE_BYTES:
            self.save()

    def save_if_due(self) -> None:
        """Raises what `save` raises."""
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save()

    def tell(self) -> None:
        """Report how far the shard is."""
        self._told_at = time.monotonic()
        counts = {"completed": self._completed, "failed": self._failed}
        self._attempt.report("progress", {"done": len(self._done), "total": self._total, **counts})

    def save(self) -> None:
        """Write what has come since the last part, and record it; a Redis that is away is asked again later.

        Raises Superseded, and whatever the artifact store's file system does.
        """
        self._saved_at = time.monotonic()
        self._write()
        if not self._unrecorded:
            return
        self.record()

    def record(self) -> bool:
        """Keep in the job's record which parts there are, and the suspects. False: Redis is away.

        Raises Superseded.
        """
        try:
            self._attempt.save_checkpoint({**self._kept, "suspects": self.suspects.record()})
        except QueueUnavailable as error:
            log.warning("%s: its answers are recorded later: %s", self._attempt.job.id, error.message)
            return False
        self._unrecorded = False
        return True

    def result(self) -> dict[str, Any]:
        """The job's result, once every row has its answer."""
        self._write()
        self.tell()
        parts = [f"artifact-{digest}" for digest in self._parts]
        return {"parts": parts, "completed": self._completed, "failed": self._failed}

    def _write(self) -> None:
        if not self._unsaved:
            return
        # In order, so that parts can be merged without holding them.
        ordered = sorted(self._unsaved, key=lambda answer: answer.row)
        self._parts.append(self._artifacts.put_stream(answer.line() for answer in ordered).digest)
        self._kept = {
            "files": {f"part-{number}": digest for number, digest in enumerate(self._parts)},
            "done": sorted(self._done),
            "completed": self._completed,
            "failed": self._failed,
        }
        self._unsaved, self._unsaved_bytes, self._unrecorded = [], 0, True
