"""Uploaded files, in OpenAI's shape: a record in Redis, the content in the artifact store.

Keys: `tandem:file:<id>` hash; `tandem:files` sorted set of ids by creation (microseconds).
"""

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tandem.artifacts import ArtifactStore
from tandem.errors import UnknownFile
from tandem.job_store import PREFIX, JobStore, queue_errors

Purpose = Literal["fine-tune", "batch"]


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


class FileStore:
    def __init__(self, jobs: JobStore, artifacts: ArtifactStore) -> None:
        self._redis = jobs.redis
        self._artifacts = artifacts

    def create(
        self, chunks: Iterable[bytes], *, filename: str, purpose: Purpose, owner: str, limit: int
    ) -> StoredFile:
        """Store an upload. Raises PayloadTooLarge beyond `limit` bytes."""
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
        with queue_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.set(f"{PREFIX}file:{file.id}", file.model_dump_json())
            pipe.zadd(f"{PREFIX}files", {file.id: time.time_ns() // 1000})
            pipe.execute()
        return file

    def get(self, file_id: str, *, param: str = "file_id") -> StoredFile:
        """Raises UnknownFile."""
        with queue_errors():
            record = self._redis.get(f"{PREFIX}file:{file_id}")
        if record is None:
            raise UnknownFile(f"there is no file {file_id!r}; upload it by POST /v1/files", param=param)
        return StoredFile.model_validate_json(record)

    def content(self, file: StoredFile) -> Iterator[bytes]:
        return self._artifacts.chunks(file.digest)

    def list(self, *, purpose: Purpose | None = None) -> list[StoredFile]:
        """Every file, newest first."""
        with queue_errors():
            ids = self._redis.zrange(f"{PREFIX}files", 0, -1, desc=True)
            records = self._redis.mget([f"{PREFIX}file:{file_id}" for file_id in ids]) if ids else []
        files = [StoredFile.model_validate_json(record) for record in records if record]
        return [file for file in files if purpose is None or file.purpose == purpose]

    def delete(self, file_id: str) -> None:
        """Forget a file. Its content may be another file's too, so the blob stays. Raises UnknownFile."""
        self.get(file_id)
        with queue_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(f"{PREFIX}file:{file_id}")
            pipe.zrem(f"{PREFIX}files", file_id)
            pipe.execute()
