"""A failover under every client of the queue: a primary, a replica and three Sentinels, all of them real.

The primary dies together with the Sentinel that stands first in the URL, as they would on one host.
"""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tandem.errors import QueueUnavailable
from tandem.outages import queue_errors
from tandem.redis_connection import connect, connect_async
from tests.integration.redis.broker import LANE, TicketWorker, app_of, ring, send_and_receive
from tests.valkey_server import SentinelGroup

FAILOVER_SECONDS = 60.0
"""With the Sentinels of these tests it takes 2 to 3 s; two busy cores may need more."""
POLL_SECONDS = 0.05

LIBRARY = """#!lua name=sentinel_test
redis.register_function('sentinel_test_add', function(keys, arguments)
  return redis.call('INCRBY', keys[1], arguments[1])
end)
"""


@pytest.fixture
def group() -> Iterator[SentinelGroup]:
    with SentinelGroup() as group:
        yield group


def lose_the_primary(group: SentinelGroup, client: redis.Redis) -> None:
    """Kill it when the replica has all that the client wrote."""
    assert client.wait(1, int(FAILOVER_SECONDS * 1000)) == 1
    group.sentinels[0].kill()
    group.primary.kill()


def wait_for_the_new_primary(client: redis.Redis) -> int:
    """Until a call succeeds; answers the port of the server that it reached. Each call before is QueueUnavailable."""
    deadline = time.monotonic() + FAILOVER_SECONDS
    while True:
        try:
            with queue_errors():
                client.set("written", "after the failover")
                return int(client.info("server")["tcp_port"])
        except QueueUnavailable:
            assert time.monotonic() < deadline, "no failover"
            time.sleep(POLL_SECONDS)


def test_a_client_goes_on_with_the_promoted_replica(group: SentinelGroup) -> None:
    """What was written before is there, the function library too, and the next call needs no new client."""
    with connect(group.url) as client:
        client.function_load(LIBRARY)
        assert client.fcall("sentinel_test_add", 1, "counter", 40) == 40
        lose_the_primary(group, client)
        assert wait_for_the_new_primary(client) == group.replica.port
        assert client.fcall("sentinel_test_add", 1, "counter", 2) == 42


def test_an_asynchronous_client_goes_on_with_the_promoted_replica(group: SentinelGroup) -> None:
    async def read_on() -> str:
        reader = connect_async(group.url, socket_timeout=2.0, max_connections=8)
        try:
            assert await reader.get("key") == "value"
            lose_the_primary(group, client)
            wait_for_the_new_primary(client)
            deadline = time.monotonic() + FAILOVER_SECONDS
            while True:
                try:
                    with queue_errors():
                        return str(await reader.get("written"))
                except QueueUnavailable:
                    # The Sentinel that it asks may learn of the failover a moment after the other one.
                    assert time.monotonic() < deadline
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            await reader.aclose()

    with connect(group.url) as client:
        client.set("key", "value")
        assert asyncio.run(read_on()) == "after the failover"


def test_a_running_worker_takes_tickets_from_the_promoted_replica(group: SentinelGroup, tmp_path: Path) -> None:
    """Celery's consumer, and a connection that publishes; no password comes into the log on the way."""
    app = app_of(group.url)
    with connect(group.url) as client, TicketWorker(group.url, tmp_path) as worker:
        assert send_and_receive(app, "before") == "before"
        ring(app)
        assert worker.next_line() == LANE
        lose_the_primary(group, client)
        wait_for_the_new_primary(client)
        ring(app)
        assert worker.next_line() == LANE
        assert send_and_receive(app, "after") == "after"
        assert "Connection to broker lost" in worker.log
        for secret in (group.primary.password, group.sentinels[0].password):
            assert secret not in worker.log


def test_a_name_that_no_sentinel_knows(group: SentinelGroup) -> None:
    with (
        connect(group.url.replace("/queue/", "/other/")) as client,
        pytest.raises(QueueUnavailable, match=r"no Sentinel names a primary 'other'.* check the Sentinels' hosts"),
        queue_errors(),
    ):
        client.ping()


def test_a_wrong_password_of_the_sentinels(group: SentinelGroup) -> None:
    with (
        connect(group.url.partition("?")[0]) as client,
        pytest.raises(QueueUnavailable, match=r"\(or a Sentinel\) refuses"),
        queue_errors(),
    ):
        client.ping()
