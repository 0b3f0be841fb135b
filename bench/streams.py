"""What very many open streams cost the API: `python bench/streams.py [--quick]`.

One Valkey server, one API process with the limit of 1,024 open files that a shell gives it, and a worker that tells
each stream a piece of text every second (bench/trickling_worker.py: no model runs). 1,000 clients ask at the same
moment and stay. Measured: the API's memory, files and processor time, the connections to Valkey, the time to the
first piece, and how long `GET /healthz` takes before, while the streams open, and while all are open. Every stream
must end whole. Prints a table in Markdown and writes bench-streams.json.
"""

import argparse
import http.client
import multiprocessing
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from bench.open_streams import Stream, hold
from bench.queue_server import valkey
from bench.report import keep, show
from bench.timing import quantiles_ms, timed
from bench.trickling_worker import work
from tandem.ports import PortWish, reserve

FILE = Path("bench-streams.json")
SOFT_FILES = 1024
"""Open files that a process may have unless it asks for more: what most systems set."""
START_SECONDS = 30.0
OPEN_SECONDS = 240.0
"""For all streams to begin, and for all to end."""
PROBE_SECONDS = 0.02
"""Between two health calls."""
SPAWN = multiprocessing.get_context("spawn")
"""New interpreters: what this process has loaded is none of what they take."""


@dataclass(frozen=True, slots=True)
class Amount:
    streams: int
    quiet_seconds: float
    """Of health calls before the first stream."""
    open_seconds: float
    """How long all streams stay open."""


FULL = Amount(streams=1000, quiet_seconds=5.0, open_seconds=30.0)
QUICK = Amount(streams=20, quiet_seconds=0.5, open_seconds=2.0)


@dataclass(frozen=True, slots=True)
class Api:
    url: str
    key: str
    pid: int

    def figures(self) -> dict[str, float]:
        """Of the process now: resident memory in MB, open files, processor time in seconds."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        # Fields 14 and 15 of proc(5), counted after the command's name in brackets.
        times = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
        return {
            "memory_mb": kilobytes * 1024 / 1e6,
            "files": len(os.listdir(f"/proc/{self.pid}/fd")),  # noqa: PTH208 - names alone
            "cpu_seconds": sum(map(int, times)) / os.sysconf("SC_CLK_TCK"),
        }


class HealthCalls:
    """Asks `GET /healthz` again and again, over one connection, in a thread."""

    def __init__(self, api: Api) -> None:
        where = urlsplit(api.url)
        assert where.hostname is not None
        self._connection = http.client.HTTPConnection(where.hostname, where.port, timeout=OPEN_SECONDS)
        self._seconds: list[float] = []
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="health-calls")

    def __enter__(self) -> "HealthCalls":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()
        self._connection.close()

    def taken(self) -> dict[str, float]:
        """Quantiles of what was asked since the last look, in milliseconds."""
        seconds, self._seconds = self._seconds, []
        return {**quantiles_ms(seconds), "calls": len(seconds)}

    def _ask(self) -> None:
        while not self._has_ended.wait(PROBE_SECONDS):
            self._seconds.append(timed(self._one))

    def _one(self) -> None:
        self._connection.request("GET", "/healthz")
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"/healthz answered {answer.status}")


@contextmanager
def api_process(queue: str, artifacts: str) -> Iterator[Api]:
    """`python -m api` as it is started everywhere, with few open files allowed."""
    (port,) = reserve([PortWish("", "127.0.0.1", 0)])
    key = secrets.token_hex(8)
    environment = {
        "TANDEM_REDIS_URL": queue,
        "TANDEM_ARTIFACTS_URL": artifacts,
        "TANDEM_API_KEY": key,
        "TANDEM_PORT": str(port),
    }
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'ulimit -S -n {SOFT_FILES}; exec "$0" -m api', sys.executable],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    api = Api(f"http://127.0.0.1:{port}", key, process.pid)
    try:
        _wait_for_answer(process, port)
        yield api
    finally:
        process.terminate()
        process.wait()


def _wait_for_answer(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except ConnectionError:
            # Not listening yet.
            pass
        finally:
            connection.close()
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the API does not answer (exit status {process.poll()})")
        time.sleep(PROBE_SECONDS)


def measure(amount: Amount) -> dict[str, Any]:
    """Raises RuntimeError if a stream is refused, breaks off, or does not begin in time."""
    with (
        tempfile.TemporaryDirectory() as folder,
        valkey() as queue,
        api_process(queue, f"file://{folder}") as api,
        HealthCalls(api) as health,
        redis.Redis.from_url(queue) as server,
    ):
        is_enough = SPAWN.Event()
        ours, theirs = SPAWN.Pipe()
        worker = SPAWN.Process(target=work, args=(queue, f"file://{folder}", is_enough))
        clients = SPAWN.Process(target=hold, args=(api.url, api.key, amount.streams, theirs))
        worker.start()
        try:
            time.sleep(amount.quiet_seconds)
            before, health_before = api.figures(), health.taken()
            connections = len(server.client_list())
            clients.start()
            refused = _told(ours)
            if refused:
                raise RuntimeError(f"{len(refused)} of {amount.streams} streams were refused: {refused[0]}")
            opened, health_opening = api.figures(), health.taken()
            time.sleep(amount.open_seconds)
            after, health_open = api.figures(), health.taken()
            connections = len(server.client_list()) - connections
            is_enough.set()
            streams: list[Stream] = _told(ours)
            # One that had not been told enough would end the same: its worker ends it with all that it has told.
            if broken := sum(not stream.is_complete or not stream.pieces for stream in streams):
                raise RuntimeError(f"{broken} of {amount.streams} streams broke off")
        finally:
            is_enough.set()
            for process in (worker, clients):
                if process.pid is not None:
                    process.join(OPEN_SECONDS)
                    process.kill()
        return {
            "streams": amount.streams,
            "memory_before_mb": before["memory_mb"],
            "memory_with_mb": after["memory_mb"],
            "memory_of_a_stream_kb": (after["memory_mb"] - before["memory_mb"]) * 1000 / amount.streams,
            "files_before": before["files"],
            "files_with": after["files"],
            "queue_connections_added": connections,
            "first_piece": quantiles_ms([stream.first_seconds for stream in streams]),
            "pieces_per_second": sum(stream.pieces for stream in streams) / amount.open_seconds,
            "api_cores_while_open": (after["cpu_seconds"] - opened["cpu_seconds"]) / amount.open_seconds,
            "health": {"before": health_before, "opening": health_opening, "open": health_open},
        }


def _told(connection: Connection) -> Any:
    """What the clients say next. Raises RuntimeError if they say nothing."""
    if not connection.poll(OPEN_SECONDS):
        raise RuntimeError(f"the streams neither began nor ended within {OPEN_SECONDS:g} s")
    return connection.recv()


def _table(figures: dict[str, Any]) -> None:
    health, first = figures["health"], figures["first_piece"]
    show(
        f"{figures['streams']:,} streams that are open at one API process",
        ("what", "before", "with them"),
        [
            (
                "memory of the API process, MB",
                *(f"{figures[f'memory_{when}_mb']:.0f}" for when in ("before", "with")),
            ),
            ("memory of one stream, KB", "", f"{figures['memory_of_a_stream_kb']:.0f}"),
            ("its open files", figures["files_before"], figures["files_with"]),
            ("connections to the queue's server more than before", "", figures["queue_connections_added"]),
            ("processor time of the API, cores", "", f"{figures['api_cores_while_open']:.2f}"),
            *(
                (f"`GET /healthz` {name}, ms", *(f"{health[when][key]:.1f}" for when in ("before", "open")))
                for name, key in (("p50", "p50_ms"), ("p99", "p99_ms"))
            ),
            ("the same while all open at once, p99", "", f"{health['opening']['p99_ms']:.0f}"),
            ("first piece p50, p99, ms", "", f"{first['p50_ms']:.0f}, {first['p99_ms']:.0f}"),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few streams: shows that everything runs")
    quick = parser.parse_args().quick
    machine = {"cores": os.cpu_count(), "load_at_start": round(os.getloadavg()[0], 2)}
    figures = measure(QUICK if quick else FULL)
    _table(figures)
    keep(FILE, {"machine": machine, **figures}, quick=quick)


if __name__ == "__main__":
    main()
