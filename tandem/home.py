"""The home of an embedded service (`.tandem`): its data, its secrets, its logs, and where it can be reached.

api-key, valkey-password, flower-password    made once (mode 0600)
service.json    where the running service is (mode 0600, it holds the key); absent when none runs
lock            held by the running `tandem up`, whose process it names
valkey/         valkey.conf, and the append-only file with jobs, results and indexes
artifacts/      uploaded files, adapters, large results
logs/           one for each process: valkey, api, worker-1 …, flower; those of the runs before end in .1 and .2
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tandem.errors import ConfigurationError

SECRET_BYTES = 20
"""Of a generated secret: 160 bits cannot be guessed, and 40 characters still fit a line."""
LOGS_KEPT = 2
"""Logs of earlier runs, for each process: enough to look back over one restart."""
DEFAULT_HOME = Path(".tandem")


class RunningService(BaseModel):
    """Where a running service is, and how to reach it: what service.json holds."""

    model_config = ConfigDict(frozen=True)

    supervisor: int
    """Process id of `tandem up`."""
    api_url: str
    api_key: str
    redis_url: str
    flower_url: str | None
    flower_password: str | None
    """The user's name is `tandem`."""
    pids: dict[str, int]
    """Process ids by name: `valkey`, `api`, `worker-1`, …, `flower`."""


class Home:
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.valkey = self.path / "valkey"
        self.artifacts = self.path / "artifacts"
        self.logs = self.path / "logs"
        self._lock = self.path / "lock"
        self._service = self.path / "service.json"

    def create(self) -> None:
        """Make the folders that are missing. Raises ConfigurationError if they cannot be."""
        is_new = not self.path.exists()
        try:
            for folder in (self.path, self.valkey, self.artifacts, self.logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if is_new:
                # A home lies in the folder of some project: its keys are not to be committed there.
                (self.path / ".gitignore").write_text("*\n", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"the home {self.path} cannot be made ({error.strerror}); give another with `--home`", param="--home"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the home: one service at a time. Raises ConfigurationError naming the process that holds it."""
        with self._lock.open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise ConfigurationError(
                    f"the home {self.path} is in use by `tandem up`, process {lock.read().strip() or 'unknown'}; "
                    "stop that one, or give another home with `--home`",
                    param="--home",
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def secret(self, name: str, prefix: str = "") -> str:
        """The secret kept under a name; made at its first use. Raises ConfigurationError if its file is empty."""
        path = self.path / name
        if not path.exists():
            _write_private(path, f"{prefix}{secrets.token_hex(SECRET_BYTES)}\n")
        secret = path.read_text(encoding="utf-8").strip()
        if not secret:
            raise ConfigurationError(f"{path} is empty; delete it, and a new secret is made")
        return secret

    def keep_secret(self, name: str, secret: str) -> None:
        """Keep a secret that was chosen elsewhere, so that the programs of this machine's user find it."""
        _write_private(self.path / name, f"{secret}\n")

    def new_log(self, name: str) -> Path:
        """The path of a fresh log; the logs of earlier runs move on by one number."""
        log = self.logs / f"{name}.log"
        paths = [log, *(log.with_suffix(f".log.{number}") for number in range(1, LOGS_KEPT + 1))]
        for newer, older in reversed(list(pairwise(paths))):
            if newer.exists():
                newer.replace(older)
        return log

    def announce(self, service: RunningService) -> None:
        """Say, whole or not at all, where the service is."""
        _write_private(self._service, service.model_dump_json(indent=2) + "\n")

    def withdraw(self) -> None:
        self._service.unlink(missing_ok=True)

    def running(self) -> RunningService | None:
        """The service that runs in this home, or None.

        Raises ConfigurationError if service.json is there and cannot be read.
        """
        try:
            service = RunningService.model_validate_json(self._service.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, json.JSONDecodeError) as error:
            raise ConfigurationError(
                f"{self._service} cannot be read ({type(error).__name__}); stop `tandem up` and delete it"
            ) from error
        # What a killed supervisor leaves behind is no running service.
        return service if is_alive(service.supervisor) else None


def is_alive(pid: int) -> bool:
    """Whether a process of this id runs, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at once."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as target:
        target.write(text)
    beside.replace(path)
