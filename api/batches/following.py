"""The second stage of a batch: its shards are submitted as jobs, and followed until each has ended."""

import logging
from collections.abc import Sequence

from tandem.batch import Batch, Shard, ShardEnd
from tandem.errors import QueueFull, WorkerLost
from tandem.job import Failure, Job, JobState
from tandem.job_reads import media_references
from tandem.job_store import Share
from tandem.services import Services
from tandem.specs.batch import BatchSpec
from tandem.submission import stored_spec
from tandem.tickets import lane

log = logging.getLogger(__name__)

MIN_SECONDS = 1.0
"""A shard that has less time than this left is not submitted any more."""


class Following:
    """The shards of one batch, as this clerk knows them."""

    def __init__(self, services: Services, shards: Sequence[Shard]) -> None:
        self._services = services
        self._shards = {shard.number: shard for shard in shards}
        self._cancelled: set[str] = set()

    @property
    def shards(self) -> list[Shard]:
        return [self._shards[number] for number in sorted(self._shards)]

    def look(self, batch: Batch) -> tuple[Batch, bool]:
        """Submit what is not yet submitted, note what has ended; the batch with its counts, and whether all is over.

        Raises QueueUnavailable, Superseded, UnknownBatch.
        """
        seconds_left = batch.expires_at - self._services.batches.now()
        may_submit = batch.status == "in_progress" and seconds_left > MIN_SECONDS
        if may_submit:
            batch = self._submit(batch, seconds_left)
        waiting = [shard for shard in self.shards if shard.end is None and shard.job_id is not None]
        if batch.status == "cancelling":
            self._cancel(waiting)
        jobs = {job.id: job for job in self._services.jobs.many([str(shard.job_id) for shard in waiting])}
        ended = [
            shard.model_copy(update={"end": end})
            for shard in waiting
            if (end := self._end_of(jobs.get(str(shard.job_id)))) is not None
        ]
        self._shards |= {shard.number: shard for shard in ended}
        batch = self._count(batch, list(jobs.values()), ended)
        is_over = all(
            shard.end is not None or (shard.job_id is None and not may_submit) for shard in self._shards.values()
        )
        return batch, is_over

    def cancel_all(self) -> None:
        """Stop what runs of a batch that has failed. Raises QueueUnavailable."""
        self._cancel([shard for shard in self.shards if shard.end is None and shard.job_id is not None])

    def _submit(self, batch: Batch, seconds_left: float) -> Batch:
        """As many as the queue takes; the others are submitted at a later look."""
        submitted = []
        for shard in self.shards:
            if shard.job_id is not None:
                continue
            try:
                job = self._job(batch, shard, seconds_left)
            except QueueFull as reason:
                log.info("%s: %s", batch.id, reason.message)
                break
            submitted.append(shard.model_copy(update={"job_id": job.id}))
        if not submitted:
            return batch
        self._shards |= {shard.number: shard for shard in submitted}
        return self._services.batches.update(batch, lambda current: current, submitted)

    def _job(self, batch: Batch, shard: Shard, seconds_left: float) -> Job:
        """The job of a shard. A clerk that died after its submission had it made already: the key finds it."""
        spec = BatchSpec(
            batch=batch.id,
            task=shard.task,
            model=shard.model,
            rows=f"artifact-{shard.rows}",
            count=shard.count,
            media=tuple(f"artifact-{digest}" for digest in shard.media),
            priority=batch.priority,
            # The same for whoever submits it again: another body under the same key would be refused.
            deadline_seconds=max(
                MIN_SECONDS, round(batch.expires_at - (batch.in_progress_at or batch.created_at), 3)
            ),
        )
        return self._services.jobs.submit(
            kind="batch",
            model=shard.model,
            lane=lane("batch", shard.model),
            owner=batch.owner,
            spec=stored_spec(spec),
            scheduling=spec.model_copy(update={"deadline_seconds": seconds_left}),
            share=Share(batch.weight, batch.max_queued),
            idempotency_key=f"{batch.id}/{shard.number}",
        ).job

    def _cancel(self, shards: Sequence[Shard]) -> None:
        known = self._services.jobs.many([str(shard.job_id) for shard in shards])
        for job in known:
            if job.id not in self._cancelled and not job.state.is_terminal:
                self._services.jobs.cancel(job.id)
            self._cancelled.add(job.id)

    def _end_of(self, job: Job | None) -> ShardEnd | None:
        """How a shard has ended; None if it has not. Its parts stay young from now on."""
        if job is None:
            lost = WorkerLost("the job of this row's shard was forgotten before its answers were read; send it again")
            return ShardEnd(outcome="failed", failure=Failure.of(lost))
        if not job.state.is_terminal:
            return None
        done = job.result if job.state is JobState.SUCCEEDED else job.checkpoint
        parts = _parts(job)
        for digest in parts:
            self._services.artifacts.refresh(digest)
        return ShardEnd(
            outcome=job.state.value,  # type: ignore[arg-type]  # the four terminal states
            parts=parts,
            completed=(done or {}).get("completed", 0),
            failed=(done or {}).get("failed", 0),
            failure=job.failure,
        )

    def _count(self, batch: Batch, jobs: Sequence[Job], ended: Sequence[Shard]) -> Batch:
        """Rows that are answered, of ended shards and of running ones; written only where something has changed."""
        ends = [shard.end for shard in self._shards.values() if shard.end is not None]
        live = [job.progress or job.checkpoint or {} for job in jobs if not job.state.is_terminal]
        refused = batch.total - sum(shard.count for shard in self._shards.values())
        completed = sum(end.completed for end in ends) + sum(counts.get("completed", 0) for counts in live)
        failed = sum(end.failed for end in ends) + sum(counts.get("failed", 0) for counts in live) + refused
        # A shard that is given back counts what it had saved: what was shown is never taken back.
        counts = {"completed": max(completed, batch.completed), "failed": max(failed, batch.failed)}
        if not ended and counts == {"completed": batch.completed, "failed": batch.failed}:
            return batch
        return self._services.batches.update(batch, lambda current: current.model_copy(update=counts), ended)


def _parts(job: Job) -> tuple[str, ...]:
    """Digests of what an ended job has answered."""
    if job.state is JobState.SUCCEEDED:
        return tuple(digest for name in job.result["parts"] for digest in media_references(name))
    return tuple((job.checkpoint or {"files": {}})["files"].values())
