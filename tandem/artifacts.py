"""Artifacts: immutable blobs on any fsspec file system, named by their SHA-256; and documents published once."""

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tandem.errors import PayloadTooLarge, UnknownArtifact

CHUNK_BYTES = 1024 * 1024
"""What is read or written at once: no blob is wholly in memory."""


@dataclass(frozen=True, slots=True)
class Artifact:
    digest: str
    """SHA-256 of the content, hexadecimal."""
    size: int
    """Bytes."""


class ArtifactStore:
    """Blobs under `blobs/<2 of digest>/<digest>`, published documents under their own names.

    A blob appears whole or not at all: it is written beside and moved into place. Writing the same content twice is
    one blob.
    """

    def __init__(self, url: str) -> None:
        fs, root = url_to_fs(url)
        self._fs: Any = fs
        self._root = str(root).rstrip("/")
        self._local = isinstance(fs, LocalFileSystem)

    def put(self, content: bytes) -> Artifact:
        return self.put_stream([content])

    def put_file(self, path: Path) -> Artifact:
        with path.open("rb") as source:
            return self.put_stream(iter(lambda: source.read(CHUNK_BYTES), b""))

    def put_stream(self, chunks: Iterable[bytes], *, limit: int | None = None, param: str = "file") -> Artifact:
        """Store a stream. Raises PayloadTooLarge, and keeps nothing, if it has more than `limit` bytes."""
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
            artifact = Artifact(sha.hexdigest(), size)
            if not self.exists(artifact.digest):
                self._fs.makedirs(self._path(artifact.digest).rsplit("/", 1)[0], exist_ok=True)
                self._fs.mv(incoming, self._path(artifact.digest))
        finally:
            if self._fs.exists(incoming):
                self._fs.rm_file(incoming)
        return artifact

    def read(self, digest: str) -> bytes:
        """The whole blob. Raises UnknownArtifact."""
        return b"".join(self.chunks(digest))

    def chunks(self, digest: str) -> Iterator[bytes]:
        """The blob, piece by piece. Raises UnknownArtifact."""
        try:
            source = self._fs.open(self._path(digest), "rb")
        except FileNotFoundError as error:
            raise UnknownArtifact(f"there is no artifact {digest}") from error
        with source:
            while chunk := source.read(CHUNK_BYTES):
                yield chunk

    def fetch(self, digest: str, path: Path) -> None:
        """Copy a blob to a local file."""
        with path.open("wb") as target:
            target.writelines(self.chunks(digest))

    def exists(self, digest: str) -> bool:
        return bool(self._fs.exists(self._path(digest)))

    def publish(self, name: str, content: bytes) -> bool:
        """Create a document under a name of its own, whole and only once; False if it was there already."""
        path = f"{self._root}/{name}"
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
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
        return True

    def published(self, name: str) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def retract(self, name: str) -> None:
        """Delete a published document; its blobs stay."""
        if self._fs.exists(f"{self._root}/{name}"):
            self._fs.rm_file(f"{self._root}/{name}")

    def _path(self, digest: str) -> str:
        return f"{self._root}/blobs/{digest[:2]}/{digest}"
