"""The store of batches: records in Redis, each change of one in a transaction.

Keys: `tandem:batch:<id>` the record (JSON); `tandem:batch-shards:<id>` hash, number of a shard -> the shard (JSON);
`tandem:batches` and `tandem:batches:<owner>` sorted sets of ids by creation (microseconds); `tandem:open-batches`
sorted set, batch that a clerk has work with -> when its lease ends (milliseconds); `tandem:batch-key:<owner>:<key>`
"<id> <digest of the request>", expires. A batch's keys expire some time after its end.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import redis

from tandem.batch import TRANSITIONS, Batch, Shard
from tandem.errors import Conflict, IdempotencyConflict, Superseded, UnknownBatch
from tandem.files import StoredFile, UploadKey
from tandem.function_library import PREFIX
from tandem.job_store import JobStore, Share
from tandem.specs.base import Priority
from tandem.specs.batch import BatchEndpoint, window_seconds

KEEP_SECONDS = 30 * 86_400.0
"""How long an ended batch is shown, as long as its input file is kept by default; its output files have a life of
their own."""
LOOKED_AT = 16
"""Batches without a clerk that one call looks at: others may take some of them at the same moment."""
READ_AT_ONCE = 100
"""Records of one MGET."""
OPEN = f"{PREFIX}open-batches"
ALL = f"{PREFIX}batches"

Change = Callable[[Batch], Batch]


class BatchStore:
    """All that is done with batches. Every method raises QueueUnavailable.

    One clerk at a time drives a batch (api/batches/clerk.py): it has taken the batch for a while, and shows its fence
    with every write. What users ask for shows none.
    """

    def __init__(self, jobs: JobStore) -> None:
        self._redis, self._guard = jobs.redis, jobs.guard

    # For users

    def create(
        self,
        *,
        owner: str,
        share: Share,
        operator: bool = False,
        endpoint: BatchEndpoint,
        file: StoredFile,
        completion_window: str,
        priority: Priority = "low",
        metadata: Mapping[str, str] | None = None,
        output_seconds: int | None = None,
        key: UploadKey | None = None,
    ) -> Batch:
        """A new batch, to be validated; the same request under the same key of an owner is that batch again.

        Raises IdempotencyConflict if the key was used with another request.
        """
        created_at = self.now()
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex[:24]}",
            owner=owner,
            weight=share.weight,
            max_queued=share.max_queued,
            operator=operator,
            endpoint=endpoint,
            input_file_id=file.id,
            input_digest=file.digest,
            completion_window=completion_window,
            priority=priority,
            metadata=None if metadata is None else dict(metadata),
            output_seconds=output_seconds,
            created_at=created_at,
            expires_at=created_at + window_seconds(completion_window),
        )
        while (stored := self._record(batch, key)) is None:
            pass  # each time around, another request with this key was recorded or forgotten
        return stored

    # To the next three, `owner` is whose batches there are; None: everybody's.

    def get(self, batch_id: str, owner: str | None) -> Batch:
        """Raises UnknownBatch, also for another owner's."""
        with self._guard():
            record = self._redis.get(_record_key(batch_id))
        if record is None or owner not in (None, (batch := Batch.model_validate_json(record)).owner):
            raise _unknown(batch_id)
        return batch

    def list(self, owner: str | None, *, after: str | None = None, limit: int = 20) -> Sequence[Batch]:
        """Batches, newest first, from behind the batch `after` on. Raises UnknownBatch for that one."""
        index = ALL if owner is None else f"{ALL}:{owner}"
        found: list[Batch] = []
        with self._guard():
            rank = -1 if after is None else self._redis.zrevrank(index, after)
            if rank is None:
                raise UnknownBatch(f"`after` names the batch {after!r}, which is not in this list", param="after")
            ids = self._redis.zrange(index, rank + 1, -1, desc=True)
        for _, batch in self._read(ids):
            found += [] if batch is None else [batch]
            if len(found) == limit:
                break
        return found

    def cancel(self, batch_id: str, owner: str | None) -> Batch:
        """Ask that a batch ends with what it has done; asked again it stays as it is.

        Raises UnknownBatch, Conflict if it has ended otherwise, or is about to.
        """
        self.get(batch_id, owner)
        now = self.now()

        def change(batch: Batch) -> Batch:
            if batch.status in ("cancelling", "cancelled"):
                return batch
            if "cancelling" not in TRANSITIONS[batch.status]:
                raise Conflict(
                    f"batch {batch_id} is {batch.status}; it can be cancelled while it is validating or in progress",
                    param="batch_id",
                )
            return batch.model_copy(update={"status": "cancelling", "cancelling_at": now})

        return self._change(batch_id, change)

    # For clerks

    def now(self) -> float:
        """Seconds since the epoch, by the server's clock."""
        with self._guard():
            seconds, microseconds = self._redis.time()
        return float(seconds + microseconds / 1e6)

    def take(self, lease_seconds: float) -> Batch | None:
        """A batch that nobody drives, for so long; None if there is none now."""
        now = self.now()
        with self._guard():
            ids = self._redis.zrangebyscore(OPEN, "-inf", now * 1000, start=0, num=LOOKED_AT)
        for batch_id in ids:
            if (batch := self._take(batch_id, now, lease_seconds)) is not None:
                return batch
        return None

    def renew(self, batch: Batch, lease_seconds: float) -> Batch:
        """Keep a batch for so long from now on; answers how it stands. Raises Superseded, UnknownBatch."""
        lease_ends = (self.now() + lease_seconds) * 1000
        return self._change(batch.id, _same, fence=batch.fence, lease_ends=lease_ends)

    def give_back(self, batch: Batch) -> None:
        """Let another clerk take it at once. Raises Superseded, UnknownBatch."""
        self._change(batch.id, _same, fence=batch.fence, lease_ends=0.0)

    def let_go(self, batch: Batch) -> None:
        """Nothing is left to be done for an ended batch. Asked again, or for another clerk, it is harmless."""
        with self._guard():
            self._redis.zrem(OPEN, batch.id)

    def update(self, batch: Batch, change: Change, shards: Iterable[Shard] = ()) -> Batch:
        """Change the record as it stands then, and write shards, in one transaction.

        Raises Superseded if another clerk has taken the batch, UnknownBatch, and what `change` raises. A change of
        status that TRANSITIONS does not know is an error of the program.
        """
        return self._change(batch.id, change, fence=batch.fence, shards=shards)

    def shards(self, batch_id: str) -> Sequence[Shard]:
        """A batch's shards, in the order of their rows."""
        with self._guard():
            records = self._redis.hvals(_shards_key(batch_id))
        return sorted((Shard.model_validate_json(record) for record in records), key=lambda shard: shard.number)

    def artifact_references(self) -> Iterator[str]:
        """Digests of what unfinished batches read and have made, for artifact_collection.py."""
        with self._guard():
            ids = self._redis.zrange(ALL, 0, -1)
        for batch_id, batch in self._read(ids):
            if batch is None or batch.has_ended:
                continue
            yield batch.input_digest
            yield from batch.rejected
            for shard in self.shards(batch_id):
                yield shard.rows
                yield from shard.media
                yield from () if shard.end is None else shard.end.parts

    def forget_expired(self) -> None:
        """Take the batches out of the lists whose records have expired."""
        with self._guard():
            indexes = [ALL, *self._redis.scan_iter(f"{ALL}:*", _type="zset")]
        for index in indexes:
            with self._guard():
                ids = self._redis.zrange(index, 0, -1)
            gone = [batch_id for batch_id, batch in self._read(ids) if batch is None]
            if gone:
                with self._guard():
                    self._redis.zrem(index, *gone)

    def _record(self, batch: Batch, key: UploadKey | None) -> Batch | None:
        """Write a new record, or answer with the one that its key has made. None if the key was used at the same
        moment: look again. Raises IdempotencyConflict.
        """
        with self._guard(), self._redis.pipeline(transaction=True) as pipe:
            if key is not None:
                place = f"{PREFIX}batch-key:{batch.owner}:{key.word}"
                pipe.watch(place)
                known_id, _, digest = (pipe.get(place) or "").partition(" ")
                if known_id and (known := pipe.get(_record_key(known_id))):
                    if digest != _request_digest(batch):
                        raise IdempotencyConflict(param="Idempotency-Key")
                    return Batch.model_validate_json(known)
                pipe.multi()
                pipe.set(place, f"{batch.id} {_request_digest(batch)}", px=round(key.seconds * 1000))
            pipe.set(_record_key(batch.id), batch.model_dump_json())
            for index in (ALL, f"{ALL}:{batch.owner}"):
                pipe.zadd(index, {batch.id: round(batch.created_at * 1e6)})
            pipe.zadd(OPEN, {batch.id: 0})
            try:
                pipe.execute()
            except redis.WatchError:
                return None
        return batch

    def _take(self, batch_id: str, now: float, lease_seconds: float) -> Batch | None:
        def change(batch: Batch) -> Batch:
            # The record is watched, and is written together with the lease: whoever was faster is seen here.
            lease = self._redis.zscore(OPEN, batch_id)
            if lease is None or lease > now * 1000:
                raise Superseded
            return batch.model_copy(update={"fence": batch.fence + 1})

        try:
            return self._change(batch_id, change, lease_ends=(now + lease_seconds) * 1000)
        except (Superseded, UnknownBatch):
            return None

    def _change(
        self,
        batch_id: str,
        change: Change,
        *,
        fence: int | None = None,
        lease_ends: float | None = None,
        shards: Iterable[Shard] = (),
    ) -> Batch:
        written = {str(shard.number): shard.model_dump_json(exclude_defaults=True) for shard in shards}
        while True:
            with self._guard(), self._redis.pipeline(transaction=True) as pipe:
                pipe.watch(_record_key(batch_id))
                record = pipe.get(_record_key(batch_id))
                if record is None:
                    raise _unknown(batch_id)
                batch = Batch.model_validate_json(record)
                if fence is not None and batch.fence != fence:
                    raise Superseded(f"another clerk has taken batch {batch_id}")
                changed = change(batch)
                assert changed.status in {batch.status, *TRANSITIONS[batch.status]}
                pipe.multi()
                self._write(pipe, changed, lease_ends, written)
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue
            return changed

    @staticmethod
    def _write(pipe: Any, batch: Batch, lease_ends: float | None, shards: Mapping[str, str]) -> None:
        keep = round(KEEP_SECONDS * 1000) if batch.has_ended else None
        pipe.set(_record_key(batch.id), batch.model_dump_json(), px=keep)
        if keep is not None:
            pipe.delete(_shards_key(batch.id))
        elif shards:
            pipe.hset(_shards_key(batch.id), mapping=shards)
        if lease_ends is not None:
            pipe.zadd(OPEN, {batch.id: lease_ends})

    def _read(self, ids: Sequence[str]) -> Iterator[tuple[str, Batch | None]]:
        """Each id with its record, or None where that has expired."""
        for start in range(0, len(ids), READ_AT_ONCE):
            some = ids[start : start + READ_AT_ONCE]
            with self._guard():
                records = self._redis.mget([_record_key(batch_id) for batch_id in some])
            for batch_id, record in zip(some, records, strict=True):
                yield batch_id, None if record is None else Batch.model_validate_json(record)


def _same(batch: Batch) -> Batch:
    return batch


def _record_key(batch_id: str) -> str:
    return f"{PREFIX}batch:{batch_id}"


def _shards_key(batch_id: str) -> str:
    return f"{PREFIX}batch-shards:{batch_id}"


def _unknown(batch_id: str) -> UnknownBatch:
    return UnknownBatch(f"there is no batch {batch_id!r}; GET /v1/batches lists them", param="batch_id")


def _request_digest(batch: Batch) -> str:
    """Of all that the client sent."""
    sent = ("endpoint", "input_file_id", "completion_window", "priority", "metadata", "output_seconds")
    asked = batch.model_dump(mode="json", include=set(sent))
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
