"""The whole service as a context manager, for tests and demonstrations: `tandem up` as a child process."""

import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tandem.embedded import UpOptions
from tandem.errors import TandemError
from tandem.home import Home, RunningService
from tandem.supervisor import log_tail

START_SECONDS = 180.0
"""To start in: seconds as a rule; importing torch on two busy cores from a cold disk takes much longer."""
STOP_SECONDS = 120.0
"""To stop in: more than the drain of a worker and the grace of every other process together."""


class ServiceFailed(TandemError):
    """The service did not start."""

    code = "service_failed"


class EmbeddedService:
    """A service that runs as long as this object, or the process that made it, lives.

        with EmbeddedService.start(UpOptions(home=folder, port=0, flower_port=0)) as service:
            httpx.get(f"{service.api_url}/readyz")

    The supervisor is a process of its own, so that it has a main thread for its signals. It holds one end of a
    socket pair: it writes there once when the service is ready, and stops when the other end is closed, which the
    kernel does if this process dies.
    """

    def __init__(self, home: Home, process: subprocess.Popen[bytes], lifeline: socket.socket) -> None:
        self.home = home
        self._process = process
        self._lifeline = lifeline

    @classmethod
    def start(cls, options: UpOptions, *, environment: Mapping[str, str] | None = None) -> Self:
        """Start the service and wait until it is ready.

        `environment` adds to this process's variables (TANDEM_LEASE_SECONDS and the like). Raises ServiceFailed with
        what `tandem up` said.
        """
        home = Home(options.home)
        home.create()
        ours, theirs = socket.socketpair()
        log = home.new_log("up")
        with theirs, log.open("ab") as output:
            process = subprocess.Popen(
                (sys.executable, "-m", "tandem.cli", "up", *_arguments(options, theirs.fileno())),
                env={**os.environ, **(environment or {})},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        service = cls(home, process, ours)
        try:
            readable, _, _ = select.select([ours], [], [], START_SECONDS)
            # An empty answer is the end of the process.
            if not readable or not ours.recv(1):
                raise ServiceFailed(f"the service did not start; `tandem up` said:\n{log_tail(log, lines=50)}")
        except BaseException:
            service.stop()
            raise
        return service

    def stop(self) -> None:
        """Stop every process of the service, draining the workers; harmless if it has stopped already.

        Raises subprocess.TimeoutExpired if it does not stop; it is killed then.
        """
        self._lifeline.close()
        try:
            self._process.wait(STOP_SECONDS)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def wait_for_end(self, seconds: float) -> int:
        """Wait until the supervisor has ended by itself; answers its exit code.

        Raises subprocess.TimeoutExpired if it still runs after so many seconds.
        """
        return self._process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> RunningService:
        """Addresses, secrets and process ids as they are now. Raises ServiceFailed if it does not run any more."""
        service = self.home.running()
        if service is None:
            raise ServiceFailed(f"the service of {self.home.path} does not run")
        return service

    @property
    def api_url(self) -> str:
        return self.running.api_url

    @property
    def api_key(self) -> str:
        return self.running.api_key

    @property
    def redis_url(self) -> str:
        return self.running.redis_url

    @property
    def flower_url(self) -> str | None:
        return self.running.flower_url

    @property
    def supervisor_pid(self) -> int:
        return self._process.pid

    def pid_of(self, name: str) -> int:
        """The process id of `valkey`, `api`, `worker-1` … or `flower`; another one after a restart."""
        return self.running.pids[name]


def _arguments(options: UpOptions, lifeline: int) -> list[str]:
    arguments = {
        "--home": options.home,
        "--host": options.host,
        "--port": options.port,
        "--flower-port": options.flower_port,
        "--workers": options.workers,
        "--lifeline": lifeline,
    }
    flat = [str(part) for pair in arguments.items() for part in pair]
    flags = {"--no-flower": not options.flower, "--ephemeral": options.ephemeral}
    return [*flat, *(flag for flag, is_set in flags.items() if is_set)]
