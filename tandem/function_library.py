"""The server-side functions that change jobs (transitions/*.lua), loaded when the server lacks them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import resources
from typing import Any

import redis

PREFIX = "tandem:"
"""Of every key of ours; Celery's own have none."""
LIBRARY = "tandem_3"
"""Its name on the server; the version changes with the keys or the calls."""
SOURCES = (
    "record",
    "ready",
    "workers",
    "life",
    "submission",
    "attempts",
    "control",
    "sweep",
    "webhooks",
    "register",
)
"""The files of the library, in the order in which they build on each other."""


def library_source() -> str:
    """The whole library, as FUNCTION LOAD takes it."""
    folder = resources.files("tandem").joinpath("transitions")
    return "\n".join(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in SOURCES)


class FunctionLibrary:
    """Calls the functions of one server. Thread-safe, as the client is."""

    def __init__(self, client: Any, guard: Callable[[], AbstractContextManager[None]]) -> None:
        """`guard` is put around each call."""
        self._client = client
        self._guard = guard

    def call(self, function: str, *arguments: Any) -> Any:
        """One atomic call. Raises QueueUnavailable."""
        name = f"{LIBRARY}_{function}"
        with self._guard():
            try:
                return self._client.fcall(name, 0, *arguments)
            except redis.ResponseError as error:
                if "Function not found" not in str(error):
                    raise
                # A new or emptied server: give it the library, then ask again.
                self._client.function_load(library_source(), replace=True)
                return self._client.fcall(name, 0, *arguments)
