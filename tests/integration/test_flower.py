"""Flower as we run it: loopback, a password, and nothing that changes anything. A real Flower over a real Valkey."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tandem.cli.flower import USER
from tandem.settings import Settings
from tandem.tickets import TASK, create_app
from tests.valkey_server import ValkeyServer, free_port

START_SECONDS = 60.0
"""It takes 2 s on an idle machine."""
POLL_SECONDS = 0.05
PASSWORD = "correct-horse-battery"


@dataclass
class RunningFlower:
    process: subprocess.Popen[str]
    url: str
    port: int
    redis_url: str

    @property
    def client(self) -> httpx.Client:
        """A visitor who knows the password."""
        return httpx.Client(base_url=self.url, auth=(USER, PASSWORD), trust_env=False)


def command(port: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "tandem.cli", "flower", "--port", str(port))


@pytest.fixture(scope="module")
def flower(shared_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFlower]:
    port = free_port()
    log = tmp_path_factory.mktemp("flower") / "log"
    environment = {**os.environ, "TANDEM_REDIS_URL": shared_valkey.url, "TANDEM_FLOWER_PASSWORD": PASSWORD}
    with log.open("w") as output:
        process = subprocess.Popen(command(port), env=environment, stderr=output, text=True)
    running = RunningFlower(process, f"http://127.0.0.1:{port}", port, shared_valkey.url)
    deadline = time.monotonic() + START_SECONDS
    while not answers(running):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(POLL_SECONDS)
    yield running
    process.terminate()
    assert process.wait(START_SECONDS) == 0, log.read_text()


def answers(flower: RunningFlower) -> bool:
    try:
        return httpx.get(f"{flower.url}/healthcheck", trust_env=False).is_success
    except httpx.TransportError:
        return False


PAGES = ("/", "/tasks", "/broker", "/api/workers", "/api/tasks", "/metrics")


@pytest.mark.parametrize("page", PAGES)
def test_no_page_without_the_password(flower: RunningFlower, page: str) -> None:
    """Nor /metrics, which Flower itself shows to everybody."""
    assert httpx.get(flower.url + page, trust_env=False).status_code == 401
    assert httpx.get(flower.url + page, auth=(USER, "wrong"), trust_env=False).status_code == 401


@pytest.mark.parametrize("page", PAGES)
def test_every_page_with_the_password(flower: RunningFlower, page: str) -> None:
    with flower.client as client:
        assert client.get(page).status_code == 200


def changing_paths() -> list[str]:
    """Every path of the installed Flower that takes a POST, but the one by which its table of tasks reads."""
    from flower.urls import handlers
    from flower.views.tasks import TasksDataTable

    found = []
    for handler in handlers:
        pattern, view = (
            (handler[0], handler[1]) if isinstance(handler, tuple) else (handler.regex, handler.handler_class)
        )
        if isinstance(pattern, str) and view is not TasksDataTable and "post" in vars(view) and pattern != ".*":
            found.append(pattern.replace("(.+)", "some-name"))
    return found


@pytest.mark.parametrize("path", changing_paths())
def test_nothing_can_be_changed(flower: RunningFlower, path: str) -> None:
    """It would go around the jobs' own states: a job is cancelled by the API."""
    with flower.client as client:
        answer = client.post(path)
    assert answer.status_code == 403
    assert "Read only" in answer.text


def test_the_changing_paths_are_found() -> None:
    """The test above has something to refuse."""
    paths = changing_paths()
    assert "/api/worker/shutdown/some-name" in paths
    assert "/api/task/send-task/some-name" in paths


def test_a_job_is_shown_under_its_own_id(flower: RunningFlower) -> None:
    """What a worker tells Celery's monitors of a ticket is found under the job's id."""
    job_id = "job_0123456789abcdef01234567"
    app = create_app(Settings(redis_url=flower.redis_url))
    deadline = time.monotonic() + START_SECONDS
    with app.connection() as connection, flower.client as client:
        events = app.events.Dispatcher(connection, hostname="worker@here")
        while True:
            # Again until it arrives: Flower may not have subscribed yet.
            events.send("task-received", uuid=job_id, name=TASK, args=f"('{job_id}',)", kwargs="{}")
            answer = client.get(f"/api/task/info/{job_id}")
            if answer.is_success:
                break
            assert time.monotonic() < deadline
            time.sleep(POLL_SECONDS)
    assert answer.json()["uuid"] == job_id
    assert answer.json()["name"] == TASK


def test_it_listens_on_loopback_alone(flower: RunningFlower) -> None:
    """Flower's own default is every address of the machine."""
    listening = "0A"
    loopback = "0100007F"
    addresses = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if int(port, 16) == flower.port and line.split()[3] == listening:
                addresses.append(address)
    assert addresses == [loopback]


def test_its_password_is_on_no_command_line(flower: RunningFlower) -> None:
    """Every user of the machine can list command lines."""
    assert PASSWORD.encode() not in Path(f"/proc/{flower.process.pid}/cmdline").read_bytes()


def test_without_a_password_it_does_not_start() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TANDEM_FLOWER_PASSWORD"}
    done = subprocess.run(
        command(free_port()), env=environment, capture_output=True, text=True, timeout=START_SECONDS
    )
    assert done.returncode == 2
    assert "TANDEM_FLOWER_PASSWORD" in done.stderr


def test_a_port_in_use_is_named(flower: RunningFlower) -> None:
    environment = {**os.environ, "TANDEM_FLOWER_PASSWORD": PASSWORD}
    done = subprocess.run(
        command(flower.port), env=environment, capture_output=True, text=True, timeout=START_SECONDS
    )
    assert done.returncode == 2
    assert str(flower.port) in done.stderr
    assert "--port" in done.stderr
