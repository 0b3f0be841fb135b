"""What a job's result holds besides JSON: images, sounds and the like go to the artifact store, by their digest."""

from collections.abc import Callable
from typing import Any


class ResultFiles:
    """Stores the binary parts of one job's result."""

    def __init__(self, put: Callable[[bytes], str], *, path: str | None = None) -> None:
        """`put` stores a blob and answers its SHA-256; `path` is where the API offers the job's files."""
        self._put = put
        self._path = path

    def add(self, content: bytes, media_type: str) -> dict[str, Any]:
        """How the result names a file: `artifact-…`, which another job may take as its input, and what it is."""
        name = f"artifact-{self._put(content)}"
        place = {} if self._path is None else {"path": f"{self._path}/{name}"}
        return {"artifact": name, "media_type": media_type, "bytes": len(content), **place}
