"""Uploaded files, and those that the service makes for its users, in OpenAI's shape: a record in Redis, the content
in the artifact store.

Keys: `tandem:file:<id>` the record (JSON), which Redis forgets when the file expires; `tandem:files` sorted set of
ids by creation (microseconds); `tandem:file-key:<owner>:<idempotency key>` "<id> <digest of the upload>", expires.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import redis
from pydantic import BaseModel, ConfigDict

from tandem.artifacts import Artifact, ArtifactStore
from tandem.errors import IdempotencyConflict, UnknownFile
from tandem.function_library import PREFIX
from tandem.job_store import JobStore
from tandem.specs.media import StoredPurpose

READ_AT_ONCE = 500
"""Records of one MGET: a short call for the server, few round trips for us."""
BATCH_EXPIRY_SECONDS = 30 * 86_400
"""How long a file of the purpose `batch` is kept when the upload says nothing (OpenAI's default)."""


class StoredFile(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    filename: str
    purpose: StoredPurpose
    bytes: int
    digest: str
    created_at: int
    """Seconds since the epoch."""
    expires_at: int | None = None
    """Likewise; None: it is kept until it is deleted."""


@dataclass(frozen=True, slots=True)
class UploadKey:
    """An upload's Idempotency-Key."""

    word: str
    seconds: float
    """How long it is remembered."""


class FileStore:
    def __init__(self, jobs: JobStore, artifacts: ArtifactStore) -> None:
        self._redis, self._guard = jobs.redis, jobs.guard
        self._artifacts = artifacts

    def create(
        self,
        chunks: Iterable[bytes],
        *,
        filename: str,
        purpose: StoredPurpose,
        owner: str,
        limit: int,
        key: UploadKey | None = None,
        expires_after: int | None = None,
    ) -> StoredFile:
        """Store an upload; the same one under the same key of an owner is the file of the first time.

        `expires_after` is in seconds; by default a batch's input is kept for 30 days, all else until it is deleted.
        Raises PayloadTooLarge beyond `limit` bytes, IdempotencyConflict if the key was used with another upload.
        """
        artifact = self._artifacts.put_stream(chunks, limit=limit)
        file = new_file(artifact, filename=filename, purpose=purpose, owner=owner, expires_after=expires_after)
        while (stored := self._record(file, key)) is None:
            pass  # each time around, another upload with this key was recorded or forgotten
        return stored

    def _record(self, file: StoredFile, key: UploadKey | None) -> StoredFile | None:
        """Write the record, and with it whose key made it; answers with the file that the key made before, if one is
        there. None if the key was used at the same moment: look again. Raises IdempotencyConflict.
        """
        with self._guard(), self._redis.pipeline(transaction=True) as pipe:
            if key is not None:
                place = f"{PREFIX}file-key:{file.owner}:{key.word}"
                pipe.watch(place)
                known_id, _, digest = (pipe.get(place) or "").partition(" ")
                if known_id and (known := pipe.get(f"{PREFIX}file:{known_id}")):
                    if digest != _upload_digest(file):
                        raise IdempotencyConflict(param="Idempotency-Key")
                    return StoredFile.model_validate_json(known)
                pipe.multi()
                pipe.set(place, f"{file.id} {_upload_digest(file)}", px=round(key.seconds * 1000))
            write_record(pipe, file)
            try:
                pipe.execute()
            except redis.WatchError:
                return None
        return file

    def get(self, file_id: str, *, owner: str | None = None, param: str = "file_id") -> StoredFile:
        """Raises UnknownFile, also for one that has expired; with `owner`, also for another owner's."""
        with self._guard():
            record = self._redis.get(f"{PREFIX}file:{file_id}")
        if record is None or owner not in (None, (file := StoredFile.model_validate_json(record)).owner):
            raise UnknownFile(f"there is no file {file_id!r}; upload it by POST /v1/files", param=param)
        return file

    def content(self, file: StoredFile, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to but not including `end`, piece by piece. Raises UnknownArtifact."""
        return self._artifacts.chunks(file.digest, start=start, end=end)

    def list(
        self,
        *,
        owner: str | None = None,
        purpose: StoredPurpose | None = None,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        limit: int | None = None,
    ) -> list[StoredFile]:
        """Files, or an owner's, by their time of creation, newest first by default, from behind the file `after` on.

        Raises UnknownFile if `after` is not in the list.
        """
        newest_first = order == "desc"
        if owner is not None and after is not None:
            self.get(after, owner=owner, param="after")
        with self._guard():
            start = 0
            if after is not None:
                rank = (self._redis.zrevrank if newest_first else self._redis.zrank)(f"{PREFIX}files", after)
                if rank is None:
                    raise UnknownFile(f"`after` names the file {after!r}, which is not in this list", param="after")
                start = rank + 1
            # All ids at once: paging by rank would miss one when another is deleted meanwhile.
            ids = self._redis.zrange(f"{PREFIX}files", start, -1, desc=newest_first)
        found = (file for file in self._read(ids) if purpose in (None, file.purpose) and owner in (None, file.owner))
        return list(islice(found, limit))

    def delete(self, file_id: str, *, owner: str | None = None) -> None:
        """Forget a file. Its content may be another file's too, so the blob stays. Raises UnknownFile."""
        self.get(file_id, owner=owner)
        self._forget(file_id)

    def forget_expired(self) -> int:
        """Take the files out of the list whose records have expired; answers how many."""
        with self._guard():
            ids = self._redis.zrange(f"{PREFIX}files", 0, -1)
        expired = []
        for some in _portions(ids):
            with self._guard(), self._redis.pipeline(transaction=False) as pipe:
                for file_id in some:
                    pipe.exists(f"{PREFIX}file:{file_id}")
                there = pipe.execute()
            expired += [file_id for file_id, is_there in zip(some, there, strict=True) if not is_there]
        if expired:
            # Record and id are written in one transaction: an id without a record is one whose time is over.
            self._forget(*expired)
        return len(expired)

    def artifact_references(self) -> Iterator[str]:
        """The digest of every file's content, for artifact_collection.py."""
        with self._guard():
            ids = self._redis.zrange(f"{PREFIX}files", 0, -1)
        yield from (file.digest for file in self._read(ids))

    def _read(self, ids: Sequence[str]) -> Iterator[StoredFile]:
        """The files that are still there, in the order of their ids."""
        for some in _portions(ids):
            with self._guard():
                records = self._redis.mget([f"{PREFIX}file:{file_id}" for file_id in some])
            yield from (StoredFile.model_validate_json(record) for record in records if record)

    def _forget(self, *ids: str) -> None:
        with self._guard(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(*(f"{PREFIX}file:{file_id}" for file_id in ids))
            pipe.zrem(f"{PREFIX}files", *ids)
            pipe.execute()


def new_file(
    artifact: Artifact, *, filename: str, purpose: StoredPurpose, owner: str, expires_after: int | None
) -> StoredFile:
    """The record of a new file, with an id of its own, not yet written. `expires_after` is in seconds."""
    if expires_after is None and purpose == "batch":
        expires_after = BATCH_EXPIRY_SECONDS
    now = int(time.time())
    return StoredFile(
        id=f"file-{uuid.uuid4().hex[:24]}",
        owner=owner,
        filename=filename,
        purpose=purpose,
        bytes=artifact.size,
        digest=artifact.digest,
        created_at=now,
        expires_at=None if expires_after is None else now + expires_after,
    )


def write_record(pipe: Any, file: StoredFile) -> None:
    """Add to a transaction what makes a file known."""
    pipe.set(f"{PREFIX}file:{file.id}", file.model_dump_json(), exat=file.expires_at)
    pipe.zadd(f"{PREFIX}files", {file.id: time.time_ns() // 1000})


def _portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + READ_AT_ONCE] for start in range(0, len(ids), READ_AT_ONCE))


def _upload_digest(file: StoredFile) -> str:
    """Of all that the client sent."""
    kept = None if file.expires_at is None else file.expires_at - file.created_at
    sent = [file.filename, file.purpose, file.digest, kept]
    return hashlib.sha256(json.dumps(sent).encode()).hexdigest()
