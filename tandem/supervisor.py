"""Starts processes, starts again what dies, and stops all of them, in order.

One thread, one loop: a signal, the end of a child or a due time wakes it. Signals only set a flag.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from tandem import tied_process
from tandem.errors import TandemError
from tandem.restarts import ChildState, RestartPolicy

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PROBE_SECONDS = 0.05
"""Between two questions whether a child is ready: a server tells nobody when it begins to listen."""
START_ATTEMPTS = 3
"""A child that ends so often before it was ever ready has a cause that waiting does not cure."""
TAIL_LINES = 15
"""Of a log, in an error: a traceback's end."""


class ChildFailed(TandemError):
    """A process of the service ends as soon as it is started."""

    code = "child_failed"


class StopRequested(TandemError):
    """The service was asked to stop while it was starting."""

    code = "stop_requested"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to keep running."""

    name: str
    command: tuple[str, ...]
    """The program's absolute path and its arguments; no secrets, since any user can list them."""
    environment: Mapping[str, str]
    log: Path
    """Where its output goes; appended to."""
    stage: int
    """Children of the highest stage are stopped first, together; the next stage after they have ended."""
    stop_seconds: float
    """How long it may take to end after SIGTERM; then it is killed."""
    ready: Callable[[int], bool]
    """Given its process id: whether it does its work. Called often; must answer within about a second."""


class Wakeups:
    """What wakes the loop: stop signals, the end of a child, and the end of the process at the other side of a
    lifeline (a file descriptor). Main thread only, as signal handlers are."""

    def __init__(self, lifeline: int | None = None) -> None:
        self.stop_requests = 0
        self._lifeline = lifeline

    def __enter__(self) -> "Wakeups":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._previous: dict[int, Any] = {}
        for number in STOP_SIGNALS:
            # Under nohup the end of the terminal is no reason to stop.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._request_stop)
        # Without a handler of ours, Python would not write to the pipe.
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_writer)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, seconds: float | None) -> None:
        """Return at the next event, or after so many seconds."""
        watched = [self._reader] if self._lifeline is None else [self._reader, self._lifeline]
        readable, _, _ = select.select(watched, [], [], seconds)
        if self._reader in readable:
            os.read(self._reader, 4096)
        if self._lifeline in readable:
            # Nothing is ever sent here: readable means closed.
            self._lifeline = None
            self.stop_requests += 1

    def _request_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stop_requests += 1


class _Child:
    def __init__(self, spec: ChildSpec, policy: RestartPolicy) -> None:
        self.spec = spec
        self.state = ChildState(policy)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        tie = (sys.executable, "-I", "-S", tied_process.__file__, str(os.getpid()))
        with self.spec.log.open("ab") as log:
            self.process = subprocess.Popen(
                (*tie, *self.spec.command),
                env=dict(self.spec.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A terminal sends Ctrl-C to its foreground group: the supervisor alone decides who stops when.
                process_group=0,
            )
        self.state.started(time.monotonic())

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill_group(self) -> None:
        """Kill it and what it has started itself."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return


class Supervisor:
    """Keeps children running. It is used from the main thread alone."""

    def __init__(
        self,
        wakeups: Wakeups,
        *,
        report: Callable[[str], None],
        restarted: Callable[[], None] = lambda: None,
        policy: RestartPolicy | None = None,
    ) -> None:
        """`report` shows a line to the user; `restarted` is called after a child got a new process id."""
        self._wakeups = wakeups
        self._report = report
        self._restarted = restarted
        self._policy = policy or RestartPolicy()
        self._children: dict[str, _Child] = {}

    @property
    def pids(self) -> dict[str, int]:
        """The processes that run now, by name."""
        return {name: child.process.pid for name, child in self._children.items() if child.process is not None}

    def start(self, specs: Sequence[ChildSpec], *, ready: Callable[[str], None] = lambda _name: None) -> None:
        """Start children together and wait until each is ready; `ready` is told each one's name.

        Raises ChildFailed, with the end of its log, if one cannot run; StopRequested.
        """
        for spec in specs:
            self._children[spec.name] = _Child(spec, self._policy)
            self._children[spec.name].start()
        waiting = [spec.name for spec in specs]
        while waiting:
            self._tend()
            for child in [self._children[name] for name in waiting]:
                if self._wakeups.stop_requests:
                    raise StopRequested()
                if child.state.crashes >= START_ATTEMPTS:
                    raise ChildFailed(_failure(child.spec))
                if child.process is not None and child.spec.ready(child.process.pid):
                    waiting.remove(child.spec.name)
                    ready(child.spec.name)
            if waiting:
                self._wakeups.wait(PROBE_SECONDS)

    def run(self) -> None:
        """Keep the children running until a stop is requested."""
        while not self._wakeups.stop_requests:
            self._tend()
            due = [child.state.due_at for child in self._children.values() if child.state.due_at is not None]
            self._wakeups.wait(max(0.0, min(due) - time.monotonic()) if due else None)

    def stop(self) -> None:
        """Stop the children, stage by stage. One more stop request kills all that are left."""
        patience = self._wakeups.stop_requests
        for child in self._children.values():
            child.state.stop()
        stages = sorted({child.spec.stage for child in self._children.values()}, reverse=True)
        for stage in stages:
            children = [child for child in self._children.values() if child.spec.stage == stage]
            for child in children:
                child.signal(signal.SIGTERM)
            begun = time.monotonic()
            for child in children:
                self._await_end(child, begun + child.spec.stop_seconds, patience)

    def _await_end(self, child: _Child, deadline: float, patience: int) -> None:
        if child.process is None:
            return
        while child.process.poll() is None and self._wakeups.stop_requests <= patience:
            left = deadline - time.monotonic()
            if left <= 0:
                self._report(f"{child.spec.name} did not end within {child.spec.stop_seconds:g} s and is killed")
                break
            self._wakeups.wait(left)
        child.kill_group()
        child.process.wait()

    def _tend(self) -> None:
        """Note who has ended, and start who is due."""
        for child in self._children.values():
            if child.process is not None and (code := child.process.poll()) is not None:
                child.kill_group()
                child.process = None
                self._note_end(child, describe_end(code))
            if child.state.is_due(time.monotonic()):
                self._start_again(child)

    def _start_again(self, child: _Child) -> None:
        try:
            child.start()
        except OSError as error:
            # No memory for a process, no space for its log: it may pass, and the others go on.
            child.state.started(time.monotonic())
            self._note_end(child, f"cannot be started ({error.strerror})")
        else:
            self._restarted()

    def _note_end(self, child: _Child, how: str) -> None:
        delay = child.state.ended(time.monotonic())
        self._report(f"{child.spec.name} {how}; it is started again in {delay:g} s (log: {child.spec.log})")


def describe_end(code: int) -> str:
    """How a process ended, from its return code."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"was killed by {name}"


def log_tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log."""
    if not log.exists():
        return ""
    with log.open(encoding="utf-8", errors="replace") as source:
        return "".join(deque(source, maxlen=lines)).rstrip()


def _failure(spec: ChildSpec) -> str:
    return f"{spec.name} cannot run; it ended {START_ATTEMPTS} times. The end of {spec.log}:\n{log_tail(spec.log)}"
