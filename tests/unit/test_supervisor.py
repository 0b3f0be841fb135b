"""The supervisor: when it starts a child again is decided without processes; that it does, is shown on real ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.home import is_alive
from tandem.restarts import ChildState, RestartPolicy
from tandem.supervisor import ChildFailed, ChildSpec, StopRequested, Supervisor, Wakeups, describe_end

PATIENCE_SECONDS = 60.0
"""For what takes milliseconds on an idle machine."""


def crash(state: ChildState, at: float, after: float) -> float | None:
    """A child that is started at a time and ends by itself after so many seconds."""
    state.started(at)
    return state.ended(at + after)


class TestWhenAChildIsStartedAgain:
    def test_the_delay_doubles_up_to_its_limit(self) -> None:
        """A child that keeps crashing is started ever less often, and never given up."""
        state = ChildState(RestartPolicy(first_seconds=0.2, longest_seconds=1.0, healthy_seconds=30.0))
        assert [crash(state, at=0.0, after=1.0) for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
        assert state.crashes == 5

    def test_a_healthy_run_resets_the_delay(self) -> None:
        """What crashed long ago says nothing about a crash now."""
        state = ChildState(RestartPolicy(first_seconds=0.2, longest_seconds=10.0, healthy_seconds=30.0))
        crash(state, at=0.0, after=1.0)
        crash(state, at=10.0, after=1.0)
        assert crash(state, at=20.0, after=30.0) == 0.2

    def test_it_is_due_when_the_delay_is_over_and_not_while_it_runs(self) -> None:
        state = ChildState(RestartPolicy(first_seconds=0.5))
        assert not state.is_due(0.0)
        crash(state, at=0.0, after=1.0)
        assert not state.is_due(1.4)
        assert state.is_due(1.5)
        state.started(1.5)
        assert not state.is_due(100.0)

    def test_after_stop_nothing_is_started(self) -> None:
        """The end of a child that was asked to end is no crash."""
        state = ChildState(RestartPolicy())
        state.started(0.0)
        state.stop()
        assert state.ended(1.0) is None
        assert not state.is_due(1e9)
        assert state.crashes == 0

    def test_a_stop_cancels_a_restart_that_is_due(self) -> None:
        state = ChildState(RestartPolicy())
        crash(state, at=0.0, after=1.0)
        state.stop()
        assert not state.is_due(1e9)

    def test_only_what_runs_can_end(self) -> None:
        with pytest.raises(ValueError, match="not running"):
            ChildState(RestartPolicy()).ended(0.0)

    @given(st.lists(st.floats(min_value=0.0, max_value=100.0), min_size=1, max_size=30))
    def test_every_delay_lies_between_the_first_and_the_longest(self, runs: list[float]) -> None:
        policy = RestartPolicy()
        state = ChildState(policy)
        for seconds in runs:
            delay = crash(state, at=0.0, after=seconds)
            assert delay is not None
            assert policy.first_seconds <= delay <= policy.longest_seconds


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "SIGKILL"), (-15, "SIGTERM")]
)
def test_the_end_of_a_process_is_described(code: int, words: str) -> None:
    assert words in describe_end(code)


class Scene:
    """A supervisor of small Python programs, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wakeups = Wakeups()
        self.said: list[str] = []
        self.restarts = 0
        self.on_restart: Callable[[], None] = lambda: None
        self.on_report: Callable[[str], object] = lambda _line: None
        self.supervisor = Supervisor(
            self.wakeups,
            report=self._reported,
            restarted=self._restarted,
            policy=RestartPolicy(first_seconds=0.01, longest_seconds=0.05),
        )

    def child(self, name: str, program: str, *, stage: int = 0, stop_seconds: float = PATIENCE_SECONDS) -> ChildSpec:
        """It is ready when it has made the file `<name>.ready`."""
        mark = self.folder / f"{name}.ready"
        return ChildSpec(
            name=name,
            command=(sys.executable, "-c", program.replace("READY", f"open({str(mark)!r}, 'w').close()")),
            environment=dict(os.environ),
            log=self.folder / f"{name}.log",
            stage=stage,
            stop_seconds=stop_seconds,
            ready=lambda _pid: mark.exists(),
        )

    def stop_soon(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def _reported(self, line: str) -> None:
        self.said.append(line)
        self.on_report(line)

    def _restarted(self) -> None:
        self.restarts += 1
        self.on_restart()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    with scene.wakeups:
        yield scene
        scene.supervisor.stop()


SERVE = "import time; print('hello', flush=True); READY; time.sleep(1000)"
"""A server: it says something, is ready, and ends at SIGTERM."""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); READY; time.sleep(1000)"
IMPATIENT = (
    "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGINT)); "
    "READY; time.sleep(1000)"
)


class TestSupervision:
    def test_output_goes_to_the_log(self, scene: Scene) -> None:
        scene.supervisor.start([scene.child("server", SERVE)])
        assert (scene.folder / "server.log").read_text() == "hello\n"

    def test_a_killed_child_is_started_again_and_reported(self, scene: Scene) -> None:
        scene.supervisor.start([scene.child("server", SERVE)])
        first = scene.supervisor.pids["server"]
        scene.on_restart = scene.stop_soon
        os.kill(first, signal.SIGKILL)
        scene.supervisor.run()
        assert scene.restarts == 1
        assert scene.supervisor.pids["server"] != first
        assert "server was killed by SIGKILL" in scene.said[0]

    def test_a_start_that_fails_for_want_of_resources_is_tried_again(self, scene: Scene) -> None:
        """A full disk or memory may pass: the supervisor must not end by it. (Here the log's folder is missing.)"""
        folder, hidden = scene.folder / "logs", scene.folder / "hidden"
        folder.mkdir()
        spec = replace(scene.child("server", SERVE), log=folder / "server.log")
        scene.supervisor.start([spec])
        folder.rename(hidden)
        scene.on_report = lambda line: hidden.rename(folder) if "cannot be started" in line else None
        scene.on_restart = scene.stop_soon
        os.kill(scene.supervisor.pids["server"], signal.SIGKILL)
        scene.supervisor.run()
        assert [("killed" in line, "cannot be started (No such file" in line) for line in scene.said] == [
            (True, False),
            (False, True),
        ]

    def test_a_child_that_cannot_start_fails_the_start_with_its_own_words(self, scene: Scene) -> None:
        with pytest.raises(ChildFailed, match="no such model"):
            scene.supervisor.start([scene.child("broken", "raise SystemExit('no such model')")])

    def test_stopping_while_starting_is_no_failure(self, scene: Scene) -> None:
        scene.stop_soon()
        with pytest.raises(StopRequested):
            scene.supervisor.start([scene.child("slow", "import time; time.sleep(1000)")])

    def test_stages_stop_one_after_another_from_the_highest(self, scene: Scene) -> None:
        """A worker still needs the queue's server while it drains."""
        program = (
            "import signal, sys, time\n"
            "def stop(*_):\n"
            f"    time.sleep(0.1); open({str(scene.folder / 'ends')!r}, 'a').write('NAME '); sys.exit()\n"
            "signal.signal(signal.SIGTERM, stop)\nREADY\ntime.sleep(1000)"
        )
        scene.supervisor.start(
            [scene.child(name, program.replace("NAME", name), stage=stage) for stage, name in enumerate("abc")]
        )
        scene.supervisor.stop()
        assert (scene.folder / "ends").read_text() == "c b a "

    def test_a_child_that_does_not_end_in_its_time_is_killed(self, scene: Scene) -> None:
        scene.supervisor.start([scene.child("stubborn", STUBBORN, stop_seconds=0.1)])
        pid = scene.supervisor.pids["stubborn"]
        scene.supervisor.stop()
        assert not is_alive(pid)
        assert "did not end within 0.1 s" in scene.said[-1]

    def test_one_more_stop_request_kills_at_once(self, scene: Scene) -> None:
        """The second Ctrl-C: the first has asked a child to end that takes its time. Here the child sends it."""
        scene.supervisor.start([scene.child("stubborn", IMPATIENT, stop_seconds=1000.0)])
        pid = scene.supervisor.pids["stubborn"]
        scene.supervisor.stop()
        assert not is_alive(pid)

    def test_what_a_child_has_started_ends_with_it(self, scene: Scene) -> None:
        grandchild = scene.folder / "grandchild"
        program = (
            "import subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
            f"open({str(grandchild)!r}, 'w').write(str(child.pid))\nREADY\ntime.sleep(1000)"
        )
        scene.supervisor.start([scene.child("parent", program)])
        scene.supervisor.stop()
        assert_ends(int(grandchild.read_text()))

    def test_a_terminals_ctrl_c_does_not_reach_the_children(self, scene: Scene) -> None:
        """Each is in a process group of its own: a terminal signals the foreground group alone."""
        scene.supervisor.start([scene.child("server", SERVE)])
        pid = scene.supervisor.pids["server"]
        assert os.getpgid(pid) == pid != os.getpgrp()


def test_a_killed_supervisor_leaves_no_child(tmp_path: Path) -> None:
    """The kernel ends a child whose supervisor is gone, even if nothing could be done any more (SIGKILL)."""
    supervisor = tmp_path / "supervisor.py"
    supervisor.write_text(
        "import os, pathlib, sys\n"
        "from tandem.supervisor import ChildSpec, Supervisor, Wakeups\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "with Wakeups() as wakeups:\n"
        "    supervisor = Supervisor(wakeups, report=print)\n"
        "    sleep = (sys.executable, '-c', 'import time; time.sleep(1000)')\n"
        "    supervisor.start([ChildSpec('child', sleep, os.environ, folder / 'log', 0, 1.0, lambda _pid: True)])\n"
        "    print(supervisor.pids['child'], flush=True)\n"
        "    supervisor.run()\n"
    )
    with subprocess.Popen([sys.executable, str(supervisor)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert is_alive(child)
        process.kill()
        process.wait()
    assert_ends(child)


def assert_ends(pid: int) -> None:
    """The process is gone within a moment; init needs one to collect it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Alive and no zombie: in a container nobody may collect what was orphaned."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
