"""/readyz is red, and says the fix, whenever the queue's server cannot be trusted with a job; here with real servers
in each of these states."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.integration.api.api_server import client_of, serving, settings_for
from tests.valkey_server import ValkeyServer

ANSWER_SECONDS = 6.0
"""What a load balancer may wait for an answer, whatever the queue's server does: 1.5 s, and the rest for a
busy machine."""
POLL_SECONDS = 0.01
READY = {"status": "ready", "reasons": []}

KEYS = 8192
SLOW_LOADING = "key-load-delay 100\n"
"""Microseconds a key: all of them take about a second. Between 1024 keys the server answers INFO."""


@pytest.fixture
def client(own_valkey: ValkeyServer, tmp_path: Path) -> Iterator[httpx.Client]:
    with serving(settings_for(own_valkey.url, tmp_path)) as url, client_of(url) as client:
        assert client.get("/readyz").json() == READY
        yield client


@pytest.fixture
def server(own_valkey: ValkeyServer) -> Iterator[Any]:
    """The server under test, to set up."""
    with redis.Redis.from_url(own_valkey.url, decode_responses=True) as server:
        yield server


def reasons(client: httpx.Client) -> list[str]:
    answer = client.get("/readyz")
    found: list[str] = answer.json()["reasons"]
    assert (answer.status_code, answer.json()["status"]) == ((503, "not ready") if found else (200, "ready"))
    return found


def test_a_server_without_an_append_only_file_is_refused(client: httpx.Client, server: Any) -> None:
    server.config_set("appendonly", "no")
    (reason,) = reasons(client)
    assert "would lose jobs" in reason
    assert "`appendonly yes`" in reason
    assert "TANDEM_EPHEMERAL=true" in reason


def test_it_is_accepted_where_jobs_may_be_lost_on_purpose(
    own_valkey: ValkeyServer, server: Any, tmp_path: Path
) -> None:
    server.config_set("appendonly", "no")
    settings = settings_for(own_valkey.url, tmp_path).model_copy(update={"ephemeral": True})
    with serving(settings) as url, client_of(url) as client:
        assert reasons(client) == []
        server.config_set("maxmemory-policy", "allkeys-lru")
        (reason,) = reasons(client)
        assert "maxmemory-policy" in reason


def test_a_server_that_evicts_is_refused(client: httpx.Client, server: Any) -> None:
    server.config_set("maxmemory-policy", "volatile-lru")
    (reason,) = reasons(client)
    assert "volatile-lru" in reason
    assert "`maxmemory-policy noeviction`" in reason
    server.config_set("maxmemory-policy", "noeviction")
    assert reasons(client) == []


def test_a_server_whose_disk_is_full_is_refused(client: httpx.Client, server: Any, own_valkey: ValkeyServer) -> None:
    """Its next append-only file is on /dev/full, where every write fails as on a full disk."""
    server.config_set("appendonly", "no")
    (own_valkey.folder / "appendonlydir" / "temp-appendonly.aof.incr").symlink_to("/dev/full")
    server.config_set("appendonly", "yes")
    # The write that fails first was acknowledged before: the server refuses those after it.
    server.set("tandem-test:write", "")
    with pytest.raises(redis.ResponseError, match="No space left on device"):
        server.set("tandem-test:write", "")
    (reason,) = reasons(client)
    assert "cannot write its append-only file" in reason
    assert "make room on its disk" in reason


def test_a_server_that_still_loads_is_refused_until_it_has(
    client: httpx.Client, server: Any, own_valkey: ValkeyServer
) -> None:
    with server.pipeline(transaction=False) as pipe:
        for number in range(KEYS):
            pipe.set(f"tandem-test:{number}", "")
        pipe.execute()
    own_valkey.sync()
    own_valkey.kill()
    with (own_valkey.folder / "valkey.conf").open("a") as configuration:
        configuration.write(SLOW_LOADING)
    restart = threading.Thread(target=own_valkey.restart, name="restart")
    restart.start()
    seen: set[str] = set()
    while restart.is_alive():
        seen.update(reasons(client))
        time.sleep(POLL_SECONDS)
    restart.join()
    assert any("still loading its data" in reason and reason.endswith("wait") for reason in seen), seen
    assert reasons(client) == []


def test_a_frozen_server_is_refused_in_time(client: httpx.Client, own_valkey: ValkeyServer) -> None:
    own_valkey.pause()
    for _ in range(2):
        # The second one cannot use a connection that is open already.
        asked = time.monotonic()
        (reason,) = reasons(client)
        assert time.monotonic() - asked < ANSWER_SECONDS
        assert "did not answer within" in reason
    own_valkey.resume()
    assert reasons(client) == []


def test_a_server_that_is_gone_is_refused_in_time(client: httpx.Client, own_valkey: ValkeyServer) -> None:
    own_valkey.kill()
    asked = time.monotonic()
    (reason,) = reasons(client)
    assert time.monotonic() - asked < ANSWER_SECONDS
    assert "does not answer" in reason
    assert "TANDEM_REDIS_URL" in reason
    assert own_valkey.password not in reason
    own_valkey.restart()
    assert reasons(client) == []
