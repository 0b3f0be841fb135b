"""One batch on its way: what its status asks for, step by step, by the clerk that holds it."""

import logging
import threading
import time

from api.batches.finalizing import Finalizing
from api.batches.following import Following
from api.batches.validation import Validation
from tandem.batch import Batch, BatchError, BatchStatus
from tandem.errors import Draining, TandemError
from tandem.services import Services
from tandem.webhooks.event_types import EventType

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
"""How long a clerk may be silent until another one takes its batch: as with jobs."""
RENEW_SECONDS = LEASE_SECONDS / 3
EVENT_OF_END: dict[BatchStatus, EventType] = {
    "completed": "batch.completed",
    "failed": "batch.failed",
    "expired": "batch.expired",
    "cancelled": "batch.cancelled",
}


class Drive:
    """Blocks on the stores: its calls are made in a thread. Belongs to one thread at a time."""

    def __init__(self, services: Services, batch: Batch, stopping: threading.Event) -> None:
        """`stopping` is set when the process ends: long steps break off then."""
        self._services = services
        self._store = services.batches
        self._stopping = stopping
        self._following: Following | None = None
        self._renewed_at = time.monotonic()
        self.batch = batch

    @property
    def is_heavy(self) -> bool:
        """Whether the next step reads the whole file."""
        return self.batch.status in ("validating", "finalizing")

    def renew(self) -> None:
        """Raises Superseded, UnknownBatch, QueueUnavailable."""
        self.batch = self._store.renew(self.batch, LEASE_SECONDS)
        self._renewed_at = time.monotonic()

    def step(self) -> bool:
        """Do what is next; True when nothing is left to do.

        Raises Superseded if another clerk has it now, Draining if the process ends, and what the stores raise.
        """
        self.renew()
        match self.batch.status:
            case "validating":
                self._validate()
            case "in_progress" | "cancelling":
                self._follow()
            case "finalizing":
                self._finalize("expired" if self._has_expired_shards() else "completed")
            case "completed" | "failed" | "expired" | "cancelled":
                # Told before it is let go: whoever takes over from a dead clerk tells it again, which does nothing.
                event = EVENT_OF_END[self.batch.status]
                self._services.webhook_events.announce(self.batch.owner, event, self.batch.id)
                self._store.let_go(self.batch)
                return True
        return False

    def give_back(self) -> None:
        """Raises Superseded, UnknownBatch, QueueUnavailable."""
        self._store.give_back(self.batch)

    def count_trouble(self) -> int:
        """How often an unforeseen error was met with this batch, this time included. Raises what the store raises."""
        self.batch = self._store.update(
            self.batch, lambda batch: batch.model_copy(update={"troubles": batch.troubles + 1})
        )
        return self.batch.troubles

    def fail(self, error: TandemError) -> None:
        """End the batch with an error that no repetition would cure. Raises what the store raises."""
        self._known().cancel_all()
        self._end("failed", errors=(*self.batch.errors, BatchError(code=error.code, message=error.message)))

    def _validate(self) -> None:
        found = Validation(self._services, self.batch, self._keep).run()
        if found.faults:
            self._end("failed", total=found.total, errors=tuple(found.faults))
            return
        changes = {
            "total": found.total,
            "failed": found.refused,
            "model": found.model,
            "errors": tuple(found.errors),
            "rejected": found.rejected,
        }
        now = self._store.now()

        def begin(batch: Batch) -> Batch:
            # It may have been cancelled meanwhile; then nothing is submitted.
            status = {} if batch.status == "cancelling" else {"status": "in_progress", "in_progress_at": now}
            return batch.model_copy(update=changes | status)

        self.batch = self._store.update(self.batch, begin, found.shards)

    def _follow(self) -> None:
        self.batch, is_over = self._known().look(self.batch)
        if not is_over:
            return
        if self.batch.status == "cancelling":
            if self.batch.total:
                self._finalize("cancelled")
            else:
                self._end("cancelled")  # before any of its lines was looked at
            return
        now = self._store.now()

        def finalize(batch: Batch) -> Batch:
            status = {} if batch.status == "cancelling" else {"status": "finalizing", "finalizing_at": now}
            return batch.model_copy(update=status)

        self.batch = self._store.update(self.batch, finalize)

    def _finalize(self, status: BatchStatus) -> None:
        outcome = Finalizing(self._services, self.batch, self._known().shards, self._keep).run()
        self._end(
            status,
            completed=outcome.completed,
            failed=outcome.failed,
            usage=outcome.usage,
            output_file_id=outcome.output_file_id,
            error_file_id=outcome.error_file_id,
        )

    def _end(self, status: BatchStatus, **changes: object) -> None:
        now = self._store.now()

        def end(batch: Batch) -> Batch:
            # Of one that fails while it is cancelled, what its user asked for is told.
            told = "cancelled" if batch.status == "cancelling" else status
            return batch.model_copy(update={**changes, "status": told, "ended_at": now})

        self.batch = self._store.update(self.batch, end)
        log.info("%s %s: %d rows answered, %d failed", self.batch.id, status, self.batch.completed, self.batch.failed)

    def _has_expired_shards(self) -> bool:
        return any(shard.end is None or shard.end.outcome == "expired" for shard in self._known().shards)

    def _known(self) -> Following:
        if self._following is None:
            self._following = Following(self._services, self._store.shards(self.batch.id))
        return self._following

    def _keep(self) -> None:
        """Called in the midst of long work. Raises Draining, Superseded, UnknownBatch, QueueUnavailable."""
        if self._stopping.is_set():
            raise Draining
        if time.monotonic() - self._renewed_at >= RENEW_SECONDS:
            self.renew()
