"""TANDEM_REDIS_URL: what it may say, what is refused and how, and that its password is never told."""

import asyncio
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import ConfigurationError, QueueUnavailable
from tandem.outages import queue_errors
from tandem.redis_connection import (
    CONNECT_SECONDS,
    _AsyncSentinels,
    _Sentinels,
    celery_broker,
    connect,
    connect_async,
)
from tandem.redis_url import RedisUrl, redacted
from tests.valkey_server import ValkeyServer

SOON_SECONDS = 6.0
"""An API request over a server that hangs must have ended by then: 1.5 s, and the rest for a busy machine."""
SECRET = "hunter2"


def test_one_server() -> None:
    address = RedisUrl.parse("redis://api:p%40ss@queue.example:6380/2")
    assert address.nodes == (("queue.example", 6380),)
    assert (address.username, address.password, address.database) == ("api", "p@ss", 2)
    assert not address.tls


def test_what_is_left_out_has_a_default() -> None:
    address = RedisUrl.parse("redis://queue")
    assert (address.nodes, address.username, address.password, address.database) == (
        (("queue", 6379),),
        None,
        None,
        0,
    )
    assert RedisUrl.parse("redis+sentinel://a/primary").nodes == (("a", 26379),)


def test_an_ipv6_address() -> None:
    assert RedisUrl.parse("redis://:pw@[::1]:7000/0").nodes == (("::1", 7000),)
    assert celery_broker("redis://:pw@[::1]:7000/0").url == "redis://:pw@[::1]:7000/0"


def test_a_socket_of_this_machine() -> None:
    address = RedisUrl.parse("unix://:pw@/run/valkey/valkey.sock?db=1")
    assert (address.socket, address.database, address.password) == ("/run/valkey/valkey.sock", 1, "pw")


def test_sentinels() -> None:
    address = RedisUrl.parse("redis+sentinel://api:pw@a:26380,b/queue/3?sentinel_password=other")
    assert address.nodes == (("a", 26380), ("b", 26379))
    assert (address.service, address.database, address.sentinel_password) == ("queue", 3, "other")


def test_sentinels_in_celerys_words() -> None:
    """Each Sentinel with the login: kombu goes from one to the next, and takes it from there."""
    broker = celery_broker("redis+sentinel://api:p%2Fw@a:1,b:2/queue/3?sentinel_password=other")
    assert broker.url == "sentinel://api:p%2Fw@a:1/3;sentinel://api:p%2Fw@b:2/3"
    assert broker.transport_options["master_name"] == "queue"
    assert broker.transport_options["sentinel_kwargs"]["password"] == "other"
    assert broker.use_ssl is None


def test_tls_in_celerys_words_checks_the_certificate() -> None:
    broker = celery_broker("rediss://:pw@queue:6380/0")
    assert broker.url == "rediss://:pw@queue:6380/0"
    assert broker.use_ssl == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        (f"http://:{SECRET}@queue", "begin it with one of redis://, rediss://, unix://"),
        (SECRET, "begin it with one of"),
        (f"redis://:{SECRET}/{SECRET}@queue:6379/0", "percent-encoded"),
        (f"redis://:{SECRET}#{SECRET}@queue:6379/0", "percent-encoded"),
        (f"redis://:{SECRET}?{SECRET}@queue:6379/0", "percent-encoded"),
        (f"redis://:{SECRET}", "has a port that is no number"),
        (f"redis://:{SECRET}[@queue", "has a host that cannot be read"),
        ("redis://queue:70000", "has a port that is no number up to 65535"),
        (f"redis://{SECRET}@queue", "has a user without a password"),
        (f"redis://:{SECRET}@", "names no host"),
        (f"redis://:{SECRET}@a,b", "names several servers"),
        (f"redis://:{SECRET}@a/jobs", "has a database that is no number"),
        (f"redis://:{SECRET}@a/-1", "has a database that is no number"),
        (f"redis://:{SECRET}@a/0?timeout=3", "has an option that is not known: redis:// takes none"),
        (f"rediss://:{SECRET}@a/0?ssl_cert_reqs=none", "leave ssl_cert_reqs and ssl_check_hostname out"),
        (f"rediss://:{SECRET}@a/0?ssl_ca_certs=/no/such/file", "cannot be used (No such file or directory)"),
        (f"redis+sentinel://:{SECRET}@a,b", "by what name the Sentinels know the primary"),
        (f"redis+sentinel://:{SECRET}@a,b/queue/x", "has a database that is no number"),
        (f"redis+sentinel://:{SECRET}@a,/queue", "names no host"),
        (f"unix://:{SECRET}@run/valkey.sock", "write unix:///path/to.sock"),
    ],
)
def test_a_faulty_url_is_refused_with_the_fault_and_the_fix(url: str, fault: str) -> None:
    """And without any part of it: an error goes into logs, and its causes with it."""
    with pytest.raises(ConfigurationError) as caught:
        connect(url)
    assert caught.value.param == "TANDEM_REDIS_URL"
    assert caught.value.message.startswith("TANDEM_REDIS_URL ")
    assert fault in caught.value.message
    assert SECRET not in "".join(traceback.format_exception(caught.value, limit=0))
    assert SECRET not in redacted(url)


def test_a_file_that_holds_no_certificate_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    with pytest.raises(ConfigurationError, match="ssl_ca_certs"):
        RedisUrl.parse(f"rediss://queue/0?ssl_ca_certs={file}")


@given(
    url=st.text(),
    password=st.from_regex(r"[a-zA-Z0-9@/?#:\[\]%&]{0,3}hunter2[a-zA-Z0-9@/?#:\[\]%&]{0,3}", fullmatch=True),
)
def test_no_error_and_no_log_has_a_part_of_the_password(url: str, password: str) -> None:
    """Whatever is written around it, well-formed or not."""
    for written in (
        f"redis://api:{password}@{url}",
        f"{url}://:{password}@a",
        f"redis+sentinel://:{password}@a/{url}",
    ):
        assert SECRET not in redacted(written)
        assert SECRET not in _told(written)


def _told(url: str) -> str:
    """All that a program may print of a URL that it was given: what it was read as, or the error and its causes."""
    try:
        return repr(RedisUrl.parse(url))
    except ConfigurationError as error:
        return "".join(traceback.format_exception(error, limit=0))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://queue:6379/0", "redis://queue:6379/0"),
        ("redis://:hunter2@queue:6379/0", "redis://:***@queue:6379/0"),
        ("unix://api:hunter2@/run/v.sock?db=1", "unix://api:***@/run/v.sock?db=1"),
        (
            "redis+sentinel://api:hunter2@a:1,b:2/queue/0?sentinel_password=hunter2",
            "redis+sentinel://api:***@a:1,b:2/queue/0?sentinel_password=***",
        ),
    ],
)
def test_a_redacted_url_still_says_where_the_server_is(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_clients_show_no_password() -> None:
    url = f"redis+sentinel://api:{SECRET}@a:1/queue/0?sentinel_password={SECRET}"
    assert SECRET not in repr(connect(url))
    assert SECRET not in repr(connect_async(url, socket_timeout=1.0, max_connections=1))
    assert SECRET not in repr(celery_broker(url))


def test_a_call_over_a_pooled_connection_to_a_frozen_server_ends_soon(own_valkey: ValkeyServer) -> None:
    client = connect(own_valkey.url)
    client.ping()
    own_valkey.pause()
    _fails_soon(client)
    own_valkey.resume()
    assert client.ping()
    client.close()


def test_a_new_connection_to_a_frozen_server_ends_soon(own_valkey: ValkeyServer) -> None:
    """The system accepts the connection; the server never answers the greeting."""
    client = connect(own_valkey.url)
    own_valkey.pause()
    _fails_soon(client)
    own_valkey.resume()
    client.close()


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port where connections are neither accepted nor refused: its queue of one is full."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield int(listener.getsockname()[1])


def test_a_server_that_cannot_be_reached_is_told_soon(black_hole: int) -> None:
    _fails_soon(connect(f"redis://127.0.0.1:{black_hole}/0"))


def test_sentinels_that_cannot_be_reached_are_told_soon(black_hole: int) -> None:
    hosts = ",".join([f"127.0.0.1:{black_hole}"] * 3)
    message = _fails_soon(connect(f"redis+sentinel://{hosts}/queue/0"))
    assert "no Sentinel names a primary 'queue' that is up; Timeout" in message


def test_threads_that_look_for_the_primary_together_lose_no_sentinel() -> None:
    """redis-py's own Sentinel, asked by two threads while the first of the hosts is down, knew one host twice
    afterwards and another no more: it moves the one that answered to the front by a swap of two places.
    """
    together = threading.Barrier(2, timeout=30.0)
    make: Any = _Sentinels
    sentinels = make([("a", 1), ("b", 2), ("c", 3)])
    known = list(sentinels.sentinels)

    def down() -> None:
        raise redis.ConnectionError

    def answers() -> dict[str, object]:
        together.wait()
        state = {"is_master": True, "is_sdown": False, "is_odown": False, "num-other-sentinels": 2}
        return {"queue": {**state, "ip": "primary", "port": 6379}}

    known[0].sentinel_masters, known[1].sentinel_masters = down, answers
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(sentinels.discover_master, ["queue", "queue"]))
    assert found == [("primary", 6379)] * 2
    assert set(sentinels.sentinels) == set(known)
    assert sentinels.sentinels[0] is known[1], "the next search begins where the last one ended"


def test_tasks_that_look_for_the_primary_together_lose_no_sentinel() -> None:
    """The same with asyncio."""

    async def search() -> None:
        together = asyncio.Barrier(2)
        make: Any = _AsyncSentinels
        sentinels = make([("a", 1), ("b", 2), ("c", 3)])
        known = list(sentinels.sentinels)

        async def down() -> None:
            raise redis.ConnectionError

        async def answers() -> dict[str, object]:
            await together.wait()
            state = {"is_master": True, "is_sdown": False, "is_odown": False, "num-other-sentinels": 2}
            return {"queue": {**state, "ip": "primary", "port": 6379}}

        known[0].sentinel_masters, known[1].sentinel_masters = down, answers
        found = await asyncio.gather(*(sentinels.discover_master("queue") for _ in range(2)))
        assert found == [("primary", 6379)] * 2
        assert set(sentinels.sentinels) == set(known)

    asyncio.run(search())


def test_a_restarted_server_costs_no_error(own_valkey: ValkeyServer) -> None:
    """The pooled connection died with it; the call is sent again over a new one."""
    client = connect(own_valkey.url)
    client.set("before", "1")
    own_valkey.sync()
    own_valkey.kill()
    own_valkey.restart()
    with queue_errors():
        assert client.get("before") == "1"
    client.close()


def test_a_call_that_timed_out_is_sent_once(own_valkey: ValkeyServer) -> None:
    client = connect(own_valkey.url, answer_seconds=0.2)
    client.ping()
    own_valkey.pause()
    with pytest.raises(QueueUnavailable), queue_errors():
        client.incr("counter")
    own_valkey.resume()
    # The server works off what came before, in the order of connections; the last word is the counter's.
    client.ping()
    assert client.get("counter") == "1"
    client.close()


def test_a_wrong_password_is_told_as_such(own_valkey: ValkeyServer) -> None:
    client = connect(f"redis://:{SECRET}@127.0.0.1:{own_valkey.port}/0")
    with (
        pytest.raises(QueueUnavailable, match="refuses the user or the password in TANDEM_REDIS_URL") as caught,
        queue_errors(),
    ):
        client.ping()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    client.close()


def test_a_socket_serves_both_clients(own_valkey: ValkeyServer) -> None:
    url = f"unix://:{own_valkey.password}@{own_valkey.socket}?db=1"

    async def read() -> object:
        reader = connect_async(url, socket_timeout=1.0, max_connections=2)
        try:
            return await reader.get("key")
        finally:
            await reader.aclose()

    with connect(url) as client:
        client.set("key", "value")
        assert asyncio.run(read()) == "value"
        assert connect(own_valkey.url).get("key") is None, "database 1 is not database 0"


def test_an_event_loop_that_is_busy_is_no_server_that_is_down(own_valkey: ValkeyServer) -> None:
    """Symptom: of a thousand streams that were opened at once, some were told that the server does not answer.

    Cause: while a connection was opened, the loop did other things for longer than CONNECT_SECONDS. Fix: in a loop,
    opening one may take as long as an answer.
    """

    async def read() -> object:
        reader = connect_async(own_valkey.url, socket_timeout=30.0, max_connections=1)
        reading = asyncio.create_task(reader.ping())
        try:
            await asyncio.sleep(0)
            time.sleep(CONNECT_SECONDS + 0.1)  # what else the loop does
            return await reading
        finally:
            await reader.aclose()

    assert asyncio.run(read())


@pytest.mark.parametrize(
    ("rule", "command"),
    [
        (("min-replicas-to-write", 1), ("SET", "key", "value")),
        (("maxmemory", 1), ("SET", "key", "value")),
    ],
)
def test_a_server_that_takes_no_writes_is_unavailable(
    own_valkey: ValkeyServer, rule: tuple[str, int], command: tuple[str, ...]
) -> None:
    """Too few replicas, or too little memory: it may pass."""
    client = connect(own_valkey.url)
    client.config_set(*rule)
    with pytest.raises(QueueUnavailable, match="takes no writes now"), queue_errors():
        client.execute_command(*command)
    client.close()


def test_a_wrong_command_stays_an_error_of_the_program(own_valkey: ValkeyServer) -> None:
    client = connect(own_valkey.url)
    client.set("key", "value")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"), queue_errors():
        client.lpush("key", "value")
    client.close()


def _fails_soon(client: redis.Redis) -> str:
    """Answers with what."""
    began = time.monotonic()
    with pytest.raises(QueueUnavailable) as caught, queue_errors():
        client.ping()
    assert time.monotonic() - began < SOON_SECONDS
    return caught.value.message
