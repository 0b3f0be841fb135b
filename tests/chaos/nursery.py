"""A warm process that forks workers and producers: a start costs no imports, so that hundreds can die in a minute.

The nursery itself has one thread, imports what its children need, and nothing more; it reads requests and writes
answers as JSON lines. A child that is killed is reported with its signal. All children die with the nursery.

A child's program is the `main` of a module, which takes the options that the same module defines.
"""

import ctypes
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from importlib import import_module, reload
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from tandem.failpoints import VARIABLE

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 240.0
"""For the imports on a busy machine, torch among them; a fork takes milliseconds."""
END_SECONDS = 60.0
PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>: the signal a child gets when its parent ends."""

LIGHT = (
    "tests.chaos.light_producer",
    "tests.chaos.light_worker",
    "celery.app.amqp",
    "celery.app.events",
    "celery.app.log",
    "celery.app.task",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "celery.events.state",
    "celery.fixups",
    "celery.loaders.app",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "kombu.asynchronous.hub",
    "kombu.transport.redis",
)
"""The light programs, and what Celery imports by name while a worker starts."""


class Options(Protocol):
    """A dataclass of a program's options."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def folder(self) -> str:
        """Where its log is written: what it says on both of its streams."""


class Child:
    """A forked process, to signal and to wait for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        """Its exit status once it has ended; minus the number of the signal that killed it."""
        self._ended = threading.Event()

    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def signal(self, number: signal.Signals) -> None:
        if self.is_alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float = END_SECONDS) -> int:
        """Its exit status. Fails if it has not ended by then."""
        assert self._ended.wait(timeout), f"process {self.pid} has not ended after {timeout:.0f} s"
        assert self.code is not None
        return self.code

    def has_ended(self, code: int) -> None:
        self.code = code
        self._ended.set()


class Nursery:
    """The nursery, seen from the test. Not thread-safe: one thread starts children."""

    def __init__(self, *modules: str) -> None:
        """`modules` are imported before the first child is asked for."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery", *modules],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._started: queue.Queue[Child] = queue.Queue()
        self._children: dict[int, Child] = {}
        self._reader = threading.Thread(target=self._read, name="nursery")
        self._reader.start()

    def start(self, options: Options, *, failpoint: str | None = None) -> Child:
        """Fork one; `failpoint` is where it dies, as TANDEM_FAILPOINT says it."""
        kind = type(options)
        request = {
            "module": kind.__module__,
            "kind": kind.__name__,
            "options": asdict(options),
            "failpoint": failpoint,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        return self._started.get(timeout=START_SECONDS)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                answer = json.loads(line)
                pid = answer["pid"]
                if "code" in answer:
                    # A number may be given to another process later.
                    self._children.pop(pid).has_ended(answer["code"])
                else:
                    self._children[pid] = Child(pid)
                    self._started.put(self._children[pid])


def serve(*modules: str) -> None:
    """The nursery's own program: fork on request, tell of ends, until the input ends."""
    for name in modules:
        import_module(name)
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    unread = b""
    while True:
        for key, _ in selector.select():
            if key.fd != sys.stdin.fileno():
                selector.unregister(key.fd)
                os.close(key.fd)
                _, status = os.waitpid(key.data, 0)
                tell(pid=key.data, code=os.waitstatus_to_exitcode(status))
                continue
            received = os.read(key.fd, 65536)
            if not received:
                return
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                pid = fork(json.loads(line))
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                tell(pid=pid)


def fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            become(request)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return pid


def become(request: dict[str, Any]) -> None:
    """In the child: its own standard streams, its fate tied to the nursery's, then its program."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    log = os.open(log_of(os.getpid(), request["options"]["folder"]), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if request["failpoint"] is not None:
        os.environ[VARIABLE] = request["failpoint"]
        # It reads the variable when it is imported, which the nursery has done without one.
        reload(import_module("tandem.failpoints"))
    module = import_module(request["module"])
    module.main(getattr(module, request["kind"])(**request["options"]))


def log_of(pid: int, folder: str | Path) -> Path:
    """What a child has said."""
    return Path(folder) / f"log-{pid}.txt"


def tell(**answer: int) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
