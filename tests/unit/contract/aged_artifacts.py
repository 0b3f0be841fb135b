"""Artifact stores whose files can be made older, and watched call by call."""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tandem import artifacts as artifacts_module
from tandem.artifacts import ArtifactStore


class LocalArtifacts:
    """A store on a local file system, whose files can be made older."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"
        self.store = ArtifactStore(self.url)

    def age(self, seconds: float) -> None:
        for path in self.root.rglob("*"):
            if path.is_file():
                then = path.stat().st_mtime - seconds
                os.utime(path, (then, then))

    def files(self, area: str) -> list[str]:
        return sorted(path.name for path in (self.root / area).rglob("*") if path.is_file())


class MemoryArtifacts:
    """A store on fsspec's file system in memory: like an object store, it cannot move a file in one step."""

    def __init__(self, name: str) -> None:
        self.root = f"/{name}"
        self.url = f"memory:/{self.root}"
        self.store = ArtifactStore(self.url)

    def age(self, seconds: float) -> None:
        for path, file in MemoryFileSystem.store.items():
            if path.startswith(self.root):
                file.modified -= timedelta(seconds=seconds)

    def files(self, area: str) -> list[str]:
        return sorted(Path(path).name for path in MemoryFileSystem.store if path.startswith(f"{self.root}/{area}/"))


Aged = LocalArtifacts | MemoryArtifacts


def forget(name: str) -> None:
    """Take a store out of the memory that all file systems in memory share."""
    for path in [path for path in MemoryFileSystem.store if path.startswith(f"/{name}/")]:
        del MemoryFileSystem.store[path]
    MemoryFileSystem.pseudo_dirs[:] = [
        path for path in MemoryFileSystem.pseudo_dirs if not path.startswith(f"/{name}")
    ]


class Watched:
    """A module or file system whose every call is announced first."""

    def __init__(self, watched: Any, announce: Callable[[], None]) -> None:
        self._watched = watched
        self._announce = announce

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._watched, name)
        return partial(self._call, found) if callable(found) else found

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._announce()
        return function(*arguments, **options)


def watch(patch: pytest.MonkeyPatch, store: ArtifactStore, announce: Callable[[], None]) -> None:
    """Announce every call that stores in this module's hands make to their file systems."""
    patch.setattr(store, "_fs", Watched(store._fs, announce))
    patch.setattr(artifacts_module, "os", Watched(os, announce))
    patch.setattr(artifacts_module, "Path", lambda path: Watched(Path(path), announce))
