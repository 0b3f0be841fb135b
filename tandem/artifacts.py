"""Artifacts: immutable blobs on any fsspec file system, named by their SHA-256; and documents published once."""

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tandem.errors import PayloadTooLarge, UnknownArtifact
from tandem.failpoints import failpoint

CHUNK_BYTES = 1024 * 1024
"""What is read or written at once: no blob is wholly in memory."""
GRACE_SECONDS = 86_400.0
"""A younger blob is never collected. Half of it is left for what lies between a blob's put and the record that refers
to it, which is seconds, or hours where a fine-tuning job puts checkpoints before it ends."""


@dataclass(frozen=True, slots=True)
class Artifact:
    digest: str
    """SHA-256 of the content, hexadecimal."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as its file system lists it."""

    name: str
    """The digest; under `incoming/` a name that says nothing."""
    size: int
    """Bytes."""
    modified: float
    """When it was last put or refreshed, in seconds since the epoch by the file system's clock."""


class ArtifactStore:
    """Blobs under `blobs/<2 of digest>/<digest>`, published documents under their own names.

    A blob appears whole or not at all: it is written under `incoming/` and moved into place. Writing the same content
    twice is one blob. What nothing refers to is deleted by way of `trash/`: artifact_collection.py says how, and why
    a reference may be written only soon after its blob was put or refreshed.
    """

    def __init__(self, url: str) -> None:
        # What other processes write must be seen at once: a cached listing would show a blob's age of long ago.
        fs, root = url_to_fs(url, use_listings_cache=False)
        self._fs: Any = fs
        self._root = str(root).rstrip("/")
        self._local = isinstance(fs, LocalFileSystem)

    def put(self, content: bytes) -> Artifact:
        return self.put_stream([content])

    def put_file(self, path: Path) -> Artifact:
        with path.open("rb") as source:
            return self.put_stream(iter(lambda: source.read(CHUNK_BYTES), b""))

    def put_stream(self, chunks: Iterable[bytes], *, limit: int | None = None, param: str = "file") -> Artifact:
        """Store a stream. Raises PayloadTooLarge, and keeps nothing, if it has more than `limit` bytes.

        Content that is here already is young again afterwards, as if it were new.
        """
        self._fs.makedirs(f"{self._root}/incoming", exist_ok=True)
        incoming = f"{self._root}/incoming/{uuid.uuid4().hex}"
        sha, size = hashlib.sha256(), 0
        try:
            with self._fs.open(incoming, "wb") as target:
                for chunk in chunks:
                    size += len(chunk)
                    if limit is not None and size > limit:
                        raise PayloadTooLarge(f"`{param}` is larger than the limit of {limit} bytes", param=param)
                    sha.update(chunk)
                    target.write(chunk)
                if self._local:
                    # On the disk before a record refers to it: a power cut must not leave an empty blob.
                    target.flush()
                    os.fsync(target.fileno())
            artifact = Artifact(sha.hexdigest(), size)
            if not self._stays_young(artifact.digest):
                self._fs.makedirs(self._path(artifact.digest).rsplit("/", 1)[0], exist_ok=True)
                self._fs.mv(incoming, self._path(artifact.digest))
        finally:
            if self._fs.exists(incoming):
                self._fs.rm_file(incoming)
        return artifact

    def read(self, digest: str) -> bytes:
        """The whole blob. Raises UnknownArtifact."""
        return b"".join(self.chunks(digest))

    def chunks(self, digest: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The blob, or its bytes from `start` up to but not including `end`, piece by piece.

        Raises UnknownArtifact.
        """
        with self._open(digest) as source:
            source.seek(start)
            while chunk := source.read(CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - start)):
                start += len(chunk)
                yield chunk

    def fetch(self, digest: str, path: Path) -> None:
        """Copy a blob to a local file."""
        with path.open("wb") as target:
            target.writelines(self.chunks(digest))

    def exists(self, digest: str) -> bool:
        return any(self._fs.exists(path) for path in self._places(digest))

    def refresh(self, digest: str) -> None:
        """Make a blob young, so that one more record may refer to it. Raises UnknownArtifact if it is gone."""
        if not self._stays_young(digest):
            self.put_stream(self.chunks(digest))

    def publish(self, name: str, content: bytes) -> bool:
        """Create a document under a name of its own, whole and only once; False if it was there already."""
        path = f"{self._root}/{name}"
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        failpoint("publish.before")
        try:
            if self._local:
                # A hard link makes "create if absent" and "whole or not at all" one step.
                self._fs.makedirs(f"{self._root}/incoming", exist_ok=True)
                incoming = f"{self._root}/incoming/{uuid.uuid4().hex}"
                self._fs.pipe_file(incoming, content)
                try:
                    os.link(incoming, path)
                finally:
                    self._fs.rm_file(incoming)
            else:
                self._fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        failpoint("publish.after")
        return True

    def published(self, name: str) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def documents(self, folder: str) -> Iterator[bytes]:
        """The contents of every document published under `<folder>/`."""
        for document in self._listed(folder):
            content = self.published(f"{folder}/{document.name}")
            if content is not None:
                yield content

    def retract(self, name: str) -> None:
        """Delete a published document; its blobs stay."""
        if self._fs.exists(f"{self._root}/{name}"):
            self._fs.rm_file(f"{self._root}/{name}")

    # For artifact_collection.py

    def blobs(self) -> Iterator[StoredBlob]:
        return self._listed("blobs")

    def trash(self) -> Iterator[StoredBlob]:
        return self._listed("trash")

    def incoming(self) -> Iterator[StoredBlob]:
        """Writes that go on, and what is left of those that broke off."""
        return self._listed("incoming")

    def discard(self, digest: str, *, older_than: float) -> bool:
        """Delete a blob, unless it was put or refreshed since `older_than` (seconds since the epoch).

        False if it stays, or is gone already.
        """
        path, trash = self._path(digest), self._trash(digest)
        self._fs.makedirs(f"{self._root}/trash", exist_ok=True)
        try:
            if self._modified(path) >= older_than:
                return False
            if not self._local:
                # Whoever makes it young at this very moment finds it in the trash: it stays there for a grace.
                self._fs.cp_file(path, trash)
                self._fs.rm_file(path)
                return True
            # Moved first and looked at again then: in the trash nobody makes it younger, so what is seen holds.
            Path(path).replace(trash)
            if self._modified(trash) >= older_than:
                self.restore(digest)
                return False
            Path(trash).unlink()
        except FileNotFoundError:
            # Another collector was faster.
            return False
        return True

    def restore(self, digest: str) -> None:
        """Move a blob back out of the trash; if it has been put anew meanwhile, that one stands."""
        path, trash = self._path(digest), self._trash(digest)
        try:
            if self._local:
                # Linked, so that its age stays, and nobody sees it missing in both places.
                with contextlib.suppress(FileExistsError):
                    os.link(trash, path)
            elif not self._fs.exists(path):
                self._fs.cp_file(trash, path)
            self._fs.rm_file(trash)
        except FileNotFoundError:
            # Another collector was faster.
            return

    def empty_trash(self, digest: str, *, older_than: float) -> bool:
        """Delete a blob for good that lies in the trash since before `older_than`."""
        try:
            if self._modified(self._trash(digest)) >= older_than:
                return False
            self._fs.rm_file(self._trash(digest))
        except FileNotFoundError:
            return False
        return True

    def delete_incoming(self, name: str) -> None:
        """Delete what is left of a write that broke off."""
        try:
            self._fs.rm_file(f"{self._root}/incoming/{name}")
        except FileNotFoundError:
            # It had not broken off, only paused for very long.
            return

    def _stays_young(self, digest: str) -> bool:
        """Whether the blob is here, and will be for half a grace; on a local file system it is made young."""
        path = self._path(digest)
        try:
            if not self._local:
                return time.time() - self._modified(path) < GRACE_SECONDS / 2
            os.utime(path)
            # The collector may have moved it away between the look-up of its name and the change of its time. If it
            # is here now, it is young to whoever moves it later.
            Path(path).stat()
        except FileNotFoundError:
            return False
        return True

    def _open(self, digest: str) -> Any:
        for path in self._places(digest):
            try:
                return self._fs.open(path, "rb")
            except FileNotFoundError:
                continue
        raise UnknownArtifact(f"there is no artifact {digest}")

    def _places(self, digest: str) -> tuple[str, ...]:
        # One that is moved back while it is looked for is missed in both places, but not in the first a second time.
        return (self._path(digest), self._trash(digest), self._path(digest))

    def _listed(self, folder: str) -> Iterator[StoredBlob]:
        for place, _, files in self._fs.walk(f"{self._root}/{folder}", detail=True):
            for name, info in files.items():
                try:
                    modified = self._modified(f"{place}/{name}", info)
                except FileNotFoundError:
                    continue
                yield StoredBlob(name, info["size"], modified)

    def _modified(self, path: str, info: dict[str, Any] | None = None) -> float:
        """When a file was last written. Listings of local file systems and of S3 say so; others are asked again."""
        found = (info or {}).get("mtime") or (info or {}).get("LastModified") or self._fs.modified(path)
        return found.timestamp() if isinstance(found, datetime) else float(found)

    def _path(self, digest: str) -> str:
        return f"{self._root}/blobs/{digest[:2]}/{digest}"

    def _trash(self, digest: str) -> str:
        return f"{self._root}/trash/{digest}"
