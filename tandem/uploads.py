"""Uploads: large files that come in parts, in OpenAI's shape. The parts are blobs of the artifact store.

No record has to keep the parts from artifact_collection.py: an upload must be completed within an hour of its
creation, and a blob is not collected within a day of its put. Those that no file was made of are collected then.

Keys: `tandem:upload:<id>` the record (JSON); `tandem:upload-parts:<id>` hash of part id to the part (JSON). Both
expire a day after the upload has begun.
"""

import hashlib
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import redis
from pydantic import BaseModel, ConfigDict

from tandem.artifacts import ArtifactStore
from tandem.errors import Conflict, InvalidRequest, UnknownArtifact, UnknownUpload
from tandem.files import StoredFile, new_file, write_record
from tandem.function_library import PREFIX
from tandem.job_store import JobStore
from tandem.specs.media import Purpose

OPEN_SECONDS = 3600
"""How long after its creation an upload takes parts and may be completed (OpenAI's limit)."""
KEPT_SECONDS = 86_400
"""How long it is known: who asks again to complete it, since an answer was lost, is told of the file."""
MAX_PARTS = 10_000
"""Of one upload (S3's limit): bounds what Redis keeps of it."""

Status = Literal["pending", "completed", "cancelled", "expired"]


class StoredPart(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    upload_id: str
    bytes: int
    digest: str
    created_at: int
    """Seconds since the epoch."""


class StoredUpload(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    filename: str
    purpose: Purpose
    bytes: int
    """Of the whole file, as announced."""
    file_expires_after: int | None
    """Seconds from the file's creation; None: as for other files of the purpose."""
    created_at: int
    """Seconds since the epoch."""
    status: Status = "pending"
    part_ids: tuple[str, ...] = ()
    """Of a completed upload: what the file was made of."""
    file: StoredFile | None = None

    @property
    def expires_at(self) -> int:
        """Seconds since the epoch."""
        return self.created_at + OPEN_SECONDS

    def at(self, now: float) -> "StoredUpload":
        """As it is at a time (seconds since the epoch): a pending upload expires by itself."""
        is_over = self.status == "pending" and now >= self.expires_at
        return self.model_copy(update={"status": "expired"}) if is_over else self


class UploadStore:
    """Thread-safe. Every method raises QueueUnavailable."""

    def __init__(self, jobs: JobStore, artifacts: ArtifactStore) -> None:
        self._redis, self._guard = jobs.redis, jobs.guard
        self._artifacts = artifacts

    def create(
        self, *, filename: str, purpose: Purpose, size: int, owner: str, file_expires_after: int | None = None
    ) -> StoredUpload:
        """Begin an upload of `size` bytes."""
        upload = StoredUpload(
            id=f"upload_{uuid.uuid4().hex[:24]}",
            owner=owner,
            filename=filename,
            purpose=purpose,
            bytes=size,
            file_expires_after=file_expires_after,
            created_at=int(time.time()),
        )
        with self._guard():
            self._redis.set(_record_key(upload.id), upload.model_dump_json(), exat=upload.created_at + KEPT_SECONDS)
        return upload

    # With `owner`, another owner's upload is an UnknownUpload to the next four.

    def get(self, upload_id: str, *, owner: str | None = None) -> StoredUpload:
        """Raises UnknownUpload."""
        with self._guard():
            upload = _read(upload_id, self._redis.get(_record_key(upload_id)))
        if owner not in (None, upload.owner):
            raise _unknown(upload_id)
        return upload

    def add_part(
        self, upload_id: str, chunks: Iterable[bytes], *, limit: int, owner: str | None = None
    ) -> StoredPart:
        """Store a part of at most `limit` bytes. Parts may be sent in any order, and beside each other.

        Raises UnknownUpload, PayloadTooLarge; Conflict if the upload takes no more parts; InvalidRequest if the parts
        together are larger than the file was announced to be, or too many.
        """
        _check_pending(self.get(upload_id, owner=owner))
        artifact = self._artifacts.put_stream(chunks, limit=limit, param="data")
        part = StoredPart(
            id=f"part_{uuid.uuid4().hex[:24]}",
            upload_id=upload_id,
            bytes=artifact.size,
            digest=artifact.digest,
            created_at=int(time.time()),
        )
        self._change(upload_id, lambda pipe, upload: self._add(pipe, upload, part))
        return part

    def complete(
        self, upload_id: str, part_ids: Sequence[str], *, md5: str | None = None, owner: str | None = None
    ) -> StoredUpload:
        """Make a file of the parts, in the order given. Asked again with the same parts, it answers with the same.

        Raises:
            UnknownUpload: there is no such upload.
            Conflict: it is cancelled, expired, or completed with other parts.
            InvalidRequest: a part is unknown or named twice, or size or MD5 are not what was announced.
            UnknownArtifact: a part's content is gone from the artifact store.
        """
        upload = self.get(upload_id, owner=owner)
        if _is_made_of(upload, part_ids):
            return upload
        try:
            return self._complete(upload, part_ids, md5)
        except (Conflict, InvalidRequest):
            # A client that lost patience has asked a second time, and that one was faster: it has ended the upload,
            # and taken the parts away.
            if _is_made_of(upload := self.get(upload_id), part_ids):
                return upload
            raise

    def _complete(self, upload: StoredUpload, part_ids: Sequence[str], md5: str | None) -> StoredUpload:
        _check_pending(upload)
        parts = self._chosen(upload, part_ids)
        digest = hashlib.md5(usedforsecurity=False)
        artifact = self._artifacts.put_stream(self._joined(parts, digest))
        if md5 is not None and digest.hexdigest() != md5.lower():
            raise InvalidRequest(
                f"`md5` is {md5}, but that of the {artifact.size} bytes received is {digest.hexdigest()}; "
                "send the parts again in a new upload",
                param="md5",
            )
        file = new_file(
            artifact,
            filename=upload.filename,
            purpose=upload.purpose,
            owner=upload.owner,
            expires_after=upload.file_expires_after,
        )
        ended = {"status": "completed", "part_ids": tuple(part_ids), "file": file}
        return self._change(upload.id, lambda pipe, upload: _end(pipe, upload, ended))

    def cancel(self, upload_id: str, *, owner: str | None = None) -> StoredUpload:
        """End an upload without a file; a cancelled one stays as it is. Raises UnknownUpload, Conflict."""
        if (upload := self.get(upload_id, owner=owner)).status == "cancelled":
            return upload
        return self._change(upload_id, lambda pipe, upload: _end(pipe, upload, {"status": "cancelled"}))

    def _change(self, upload_id: str, change: Any) -> StoredUpload:
        """Change a pending upload in one transaction. `change` gets a watching pipeline and the upload, and returns
        the upload as it becomes, with the writes queued. Raises UnknownUpload, Conflict.
        """
        while True:
            with self._guard(), self._redis.pipeline(transaction=True) as pipe:
                pipe.watch(_record_key(upload_id), _parts_key(upload_id))
                upload = _read(upload_id, pipe.get(_record_key(upload_id)))
                _check_pending(upload)
                changed: StoredUpload = change(pipe, upload)
                try:
                    pipe.execute()
                except redis.WatchError:
                    # Somebody else has changed it at the same moment: look again.
                    continue
                return changed

    @staticmethod
    def _add(pipe: Any, upload: StoredUpload, part: StoredPart) -> StoredUpload:
        parts = [StoredPart.model_validate_json(known) for known in pipe.hvals(_parts_key(upload.id))]
        received = sum(known.bytes for known in parts) + part.bytes
        if received > upload.bytes:
            raise InvalidRequest(
                f"`data` makes it {received} bytes, but the upload was announced with {upload.bytes}", param="data"
            )
        if len(parts) >= MAX_PARTS:
            raise InvalidRequest(f"the upload has {MAX_PARTS} parts, the most there may be; send larger ones")
        pipe.multi()
        pipe.hset(_parts_key(upload.id), part.id, part.model_dump_json())
        pipe.expireat(_parts_key(upload.id), upload.created_at + KEPT_SECONDS)
        return upload

    def _chosen(self, upload: StoredUpload, part_ids: Sequence[str]) -> list[StoredPart]:
        with self._guard():
            known = self._redis.hgetall(_parts_key(upload.id))
        for place, part_id in enumerate(part_ids):
            if part_id not in known:
                raise InvalidRequest(
                    f"`part_ids[{place}]`: upload {upload.id} has no part {part_id!r}", param=f"part_ids.{place}"
                )
        if len(set(part_ids)) < len(part_ids):
            raise InvalidRequest("`part_ids` names a part twice", param="part_ids")
        parts = [StoredPart.model_validate_json(known[part_id]) for part_id in part_ids]
        size = sum(part.bytes for part in parts)
        if size != upload.bytes:
            raise InvalidRequest(
                f"the parts of `part_ids` have {size} bytes, but the upload was announced with {upload.bytes}",
                param="part_ids",
            )
        return parts

    def _joined(self, parts: Sequence[StoredPart], digest: Any) -> Iterator[bytes]:
        """The content of all parts, piece by piece, which `digest` is updated with."""
        for part in parts:
            try:
                for chunk in self._artifacts.chunks(part.digest):
                    digest.update(chunk)
                    yield chunk
            except UnknownArtifact as error:
                raise UnknownArtifact(f"the content of part {part.id} is gone; send it in a new upload") from error


def _record_key(upload_id: str) -> str:
    return f"{PREFIX}upload:{upload_id}"


def _parts_key(upload_id: str) -> str:
    return f"{PREFIX}upload-parts:{upload_id}"


def _read(upload_id: str, record: str | None) -> StoredUpload:
    if record is None:
        raise _unknown(upload_id)
    return StoredUpload.model_validate_json(record).at(time.time())


def _unknown(upload_id: str) -> UnknownUpload:
    return UnknownUpload(f"there is no upload {upload_id!r}, or it is over since a day", param="upload_id")


def _is_made_of(upload: StoredUpload, part_ids: Sequence[str]) -> bool:
    return upload.status == "completed" and upload.part_ids == tuple(part_ids)


def _check_pending(upload: StoredUpload) -> None:
    if upload.status != "pending":
        raise Conflict(f"upload {upload.id} is {upload.status}; begin a new one", param="upload_id")


def _end(pipe: Any, upload: StoredUpload, ended: dict[str, Any]) -> StoredUpload:
    upload = upload.model_copy(update=ended)
    pipe.multi()
    pipe.set(_record_key(upload.id), upload.model_dump_json(), keepttl=True)
    pipe.delete(_parts_key(upload.id))
    if upload.file is not None:
        write_record(pipe, upload.file)
    return upload
