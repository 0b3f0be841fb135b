"""Runs the sides of bench/sides, each with a server of its own and an interpreter that has its library."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from bench.queue_server import valkey
from bench.side import Counts

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = Path(sys.prefix) / "bench-peers"
"""A virtual environment for each peer: no dependency of Tandem's, and no change to the versions of its own."""
SIDE_SECONDS = 240
"""Longest time for one side's measurement; the slowest takes half a minute on two quiet cores."""
TOLD_CHARACTERS = 300
"""Of a failed side's last words."""

Command = Literal["measure", "rows"]


class SideFailed(Exception):
    """A side could not be installed or measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Side:
    name: str
    module: str
    how: str
    """What its worker is: as near to one worker with 16 threads as it comes."""
    requirements: tuple[str, ...] = ()
    """Its packages; none: this interpreter has them."""

    def interpreter(self) -> Path:
        """The Python that has its library, installed now if need be. Raises SideFailed."""
        if not self.requirements:
            return Path(sys.executable)
        python = ENVIRONMENTS / self.module / "bin" / "python"
        if not python.exists():
            _uv("venv", "--quiet", "--python", sys.executable, str(ENVIRONMENTS / self.module))
        # Tandem's own pins besides: every side talks to the server through the same version of redis-py.
        pins = ("--constraint", str(ROOT / "constraints.txt"))
        _uv("pip", "install", "--quiet", "--python", str(python), *pins, *self.requirements)
        return python


TANDEM = Side("Tandem", "tandem_jobs", "16 threads")
CELERY = Side("Celery", "plain_celery", "threads pool of 16")
LISTS = Side("LPUSH/BRPOP", "bare_lists", "16 threads, no library, no record")
SIDES = (
    TANDEM,
    CELERY,
    Side("RQ", "rq_jobs", "16 processes (it has no threads)", ("rq==3.0.0",)),
    Side("Dramatiq", "dramatiq_actors", "16 threads", ("dramatiq[redis]==2.2.1",)),
    Side("taskiq", "taskiq_tasks", "16 threads, stream broker", ("taskiq==0.13.0", "taskiq-redis==1.2.4")),
    LISTS,
)


def measure(side: Side, command: Command, counts: Counts) -> dict[str, float]:
    """The figures of one side. Raises SideFailed."""
    python = side.interpreter()
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as words,
        valkey() as url,
        _worker(side, python, url, folder, words),
    ):
        try:
            producer = subprocess.run(
                [*_module(side, python), command, url, counts.to_json()],
                cwd=ROOT,
                env=_environment(folder),
                capture_output=True,
                text=True,
                timeout=SIDE_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise SideFailed(f"no answer within {SIDE_SECONDS} s; its worker: {_last(_read(words))}") from error
        if producer.returncode:
            raise SideFailed(f"{_last(producer.stderr)}; its worker: {_last(_read(words))}")
    figures: dict[str, float] = json.loads(producer.stdout)
    return figures


@contextmanager
def _worker(side: Side, python: Path, url: str, folder: str, words: IO[bytes]) -> Iterator[None]:
    # In a group of its own: a pool's processes end with it.
    process = subprocess.Popen(
        [*_module(side, python), "work", url],
        cwd=ROOT,
        env=_environment(folder),
        stdout=words,
        stderr=words,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _module(side: Side, python: Path) -> list[str]:
    return [str(python), "-m", f"bench.sides.{side.module}"]


def _environment(folder: str) -> dict[str, str]:
    """Worker and producer share a folder, which goes when they have ended."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder}


def _uv(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "uv", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SideFailed(f"not installed: {_last(done.stderr)}")


def _read(words: IO[bytes]) -> str:
    words.seek(0)
    return words.read().decode(errors="replace")


def _last(words: str) -> str:
    return " ".join(words.split())[-TOLD_CHARACTERS:] or "(silent)"
