"""Uploaded files, in OpenAI's shape: a record in Redis, the content in the artifact store.

Keys: `tandem:file:<id>` the record (JSON); `tandem:files` sorted set of ids by creation (microseconds);
`tandem:file-key:<owner>:<idempotency key>` "<id> <digest of the upload>", expires.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import redis
from pydantic import BaseModel, ConfigDict

from tandem.artifacts import ArtifactStore
from tandem.errors import IdempotencyConflict, UnknownFile
from tandem.function_library import PREFIX
from tandem.job_store import JobStore
from tandem.specs.media import Purpose

READ_AT_ONCE = 500
"""Records of one MGET: a short call for the server, few round trips for us."""


class StoredFile(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    filename: str
    purpose: Purpose
    bytes: int
    digest: str
    created_at: int
    """Seconds since the epoch."""


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
        purpose: Purpose,
        owner: str,
        limit: int,
        key: UploadKey | None = None,
    ) -> StoredFile:
        """Store an upload; the same one under the same key of an owner is the file of the first time.

        Raises PayloadTooLarge beyond `limit` bytes, IdempotencyConflict if the key was used with another upload.
        """
        artifact = self._artifacts.put_stream(chunks, limit=limit)
        file = StoredFile(
            id=f"file-{uuid.uuid4().hex[:24]}",
            owner=owner,
            filename=filename,
            purpose=purpose,
            bytes=artifact.size,
            digest=artifact.digest,
            created_at=int(time.time()),
        )
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
            pipe.set(f"{PREFIX}file:{file.id}", file.model_dump_json())
            pipe.zadd(f"{PREFIX}files", {file.id: time.time_ns() // 1000})
            try:
                pipe.execute()
            except redis.WatchError:
                return None
        return file

    def get(self, file_id: str, *, param: str = "file_id") -> StoredFile:
        """Raises UnknownFile."""
        with self._guard():
            record = self._redis.get(f"{PREFIX}file:{file_id}")
        if record is None:
            raise UnknownFile(f"there is no file {file_id!r}; upload it by POST /v1/files", param=param)
        return StoredFile.model_validate_json(record)

    def content(self, file: StoredFile) -> Iterator[bytes]:
        return self._artifacts.chunks(file.digest)

    def list(self, *, purpose: Purpose | None = None) -> list[StoredFile]:
        """Every file, newest first."""
        with self._guard():
            ids = self._redis.zrange(f"{PREFIX}files", 0, -1, desc=True)
            records = self._redis.mget([f"{PREFIX}file:{file_id}" for file_id in ids]) if ids else []
        files = [StoredFile.model_validate_json(record) for record in records if record]
        return [file for file in files if purpose is None or file.purpose == purpose]

    def delete(self, file_id: str) -> None:
        """Forget a file. Its content may be another file's too, so the blob stays. Raises UnknownFile."""
        self.get(file_id)
        with self._guard(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(f"{PREFIX}file:{file_id}")
            pipe.zrem(f"{PREFIX}files", file_id)
            pipe.execute()

    def artifact_references(self) -> Iterator[str]:
        """The digest of every file's content, for artifact_collection.py."""
        # All ids at once: paging by rank would miss one when another is deleted meanwhile.
        with self._guard():
            ids = self._redis.zrange(f"{PREFIX}files", 0, -1)
        for start in range(0, len(ids), READ_AT_ONCE):
            keys = [f"{PREFIX}file:{file_id}" for file_id in ids[start : start + READ_AT_ONCE]]
            with self._guard():
                records = self._redis.mget(keys)
            yield from (StoredFile.model_validate_json(record).digest for record in records if record)


def _upload_digest(file: StoredFile) -> str:
    """Of all that the client sent."""
    return hashlib.sha256(json.dumps([file.filename, file.purpose, file.digest]).encode()).hexdigest()
