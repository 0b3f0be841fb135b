"""`python -m api` as a process: its settings, its port, its end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.integration.api.api_server import API_KEY, client_of
from tests.integration.api.calls import submit
from tests.integration.api.sse import events_of
from tests.valkey_server import free_port

COMMAND = [sys.executable, "-m", "api"]
EXIT_SECONDS = 120.0
"""A start takes about 2 s of processor time, which other tests beside it may want too."""
POLL_SECONDS = 0.05


def environment(tmp_path: Path, **settings: str) -> dict[str, str]:
    """This process's environment without settings of its own, and the given ones."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    given = {"API_KEY": API_KEY, "ARTIFACTS_URL": f"file://{tmp_path}"} | settings
    return inherited | {f"TANDEM_{name}": value for name, value in given.items()}


@contextmanager
def running(variables: dict[str, str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, from the moment at which it answers; killed if the test leaves it running."""
    with log.open("wb") as output:
        process = subprocess.Popen(COMMAND, env=variables, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + EXIT_SECONDS
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz")
                break
            except httpx.ConnectError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, "the API did not start in time"
                time.sleep(POLL_SECONDS)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            COMMAND,
            env=environment(tmp_path, PORT=str(port)),
            capture_output=True,
            text=True,
            timeout=EXIT_SECONDS,
            check=False,
        )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert f"port {port} on 127.0.0.1" in ended.stderr
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_an_event_stream_open(
    tmp_path: Path, valkey_url: str, number: signal.Signals
) -> None:
    port, log = free_port(), tmp_path / "api.log"
    variables = environment(tmp_path, PORT=str(port), REDIS_URL=valkey_url)
    with running(variables, port, log) as process, client_of(f"http://127.0.0.1:{port}") as client:
        job_id = submit(client)
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            assert next(events_of(answer)).data["state"] == "queued"
            process.send_signal(number)
            assert process.wait(EXIT_SECONDS) == 0
    assert "Traceback" not in log.read_text()
