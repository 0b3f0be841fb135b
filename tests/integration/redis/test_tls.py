"""TLS to the queue: real handshakes, and nobody is trusted whom the given CA did not sign."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import redis
import trustme

from tandem.errors import QueueUnavailable
from tandem.outages import queue_errors
from tandem.redis_connection import celery_broker, connect, connect_async
from tests.integration.redis.broker import LANE, TicketWorker, app_of, ring, send_and_receive
from tests.integration.redis.tls_proxy import TlsProxy
from tests.valkey_server import Sentinel, ValkeyServer

UNTRUSTED = "the certificate of the queue's Redis server is not trusted"


@dataclass
class Authorities:
    ours: trustme.CA
    """Signed the server's certificate."""
    file: Path
    other_file: Path
    """Of a CA that the server has nothing to do with."""


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    folder = tmp_path_factory.mktemp("authorities")
    ours, other = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(folder / "ours.pem"))
    other.cert_pem.write_to_path(str(folder / "other.pem"))
    return Authorities(ours, folder / "ours.pem", folder / "other.pem")


@pytest.fixture(scope="module")
def address(shared_valkey: ValkeyServer, authorities: Authorities) -> Iterator[str]:
    """A URL without a CA."""
    with TlsProxy(shared_valkey.port, authorities.ours.issue_cert("127.0.0.1")) as proxy:
        yield f"rediss://:{shared_valkey.password}@127.0.0.1:{proxy.port}/0"


@pytest.fixture
def url(valkey_url: str, address: str, authorities: Authorities) -> str:
    """The URL of an empty server."""
    return f"{address}?ssl_ca_certs={authorities.file}"


def read(url: str, key: str) -> str | None:
    """By the asynchronous client."""

    async def get() -> str | None:
        reader = connect_async(url, socket_timeout=5.0, max_connections=2)
        try:
            with queue_errors():
                return cast("str | None", await reader.get(key))
        finally:
            await reader.aclose()

    return asyncio.run(get())


def test_both_clients(url: str) -> None:
    with connect(url) as client:
        client.set("key", "value")
        assert client.get("key") == "value"
    assert read(url, "key") == "value"


def test_celery(url: str, tmp_path: Path) -> None:
    """A connection that publishes, and a worker."""
    app = app_of(url)
    assert send_and_receive(app, "over TLS") == "over TLS"
    with TicketWorker(url, tmp_path) as worker:
        ring(app)
        assert worker.next_line() == LANE


def test_flower_counts_what_is_queued(url: str) -> None:
    """It has a client of its own, made from Celery's settings."""
    from flower.utils.broker import Broker

    broker = celery_broker(url)
    ring(app_of(url))
    counter = Broker(broker.url, broker_options=broker.transport_options, broker_use_ssl=broker.use_ssl)
    assert asyncio.run(counter.queues([LANE])) == [{"name": LANE, "messages": 1}]


@pytest.mark.parametrize("has_other_authority", [True, False], ids=["another CA", "the system's CAs"])
def test_a_server_that_no_given_authority_signed(
    address: str, authorities: Authorities, has_other_authority: bool
) -> None:
    """Not one client sends it the password."""
    url = f"{address}?ssl_ca_certs={authorities.other_file}" if has_other_authority else address
    with connect(url) as client, pytest.raises(QueueUnavailable, match=UNTRUSTED), queue_errors():
        client.ping()
    with pytest.raises(QueueUnavailable, match=UNTRUSTED):
        read(url, "key")
    with app_of(url).connection_for_read() as connection, pytest.raises(redis.ConnectionError, match="CERTIFICATE"):
        connection.transport.establish_connection()


def test_a_certificate_for_another_host(shared_valkey: ValkeyServer, authorities: Authorities) -> None:
    """Signed by the right CA: whoever has any certificate of it is not yet the queue."""
    with TlsProxy(shared_valkey.port, authorities.ours.issue_cert("elsewhere.example")) as proxy:
        url = f"rediss://:{shared_valkey.password}@127.0.0.1:{proxy.port}/0?ssl_ca_certs={authorities.file}"
        with connect(url) as client, pytest.raises(QueueUnavailable, match=UNTRUSTED), queue_errors():
            client.ping()
        with app_of(url).connection_for_read() as connection, pytest.raises(redis.ConnectionError, match="CERT"):
            connection.transport.establish_connection()


def test_sentinels_over_tls(shared_valkey: ValkeyServer, valkey_url: str, authorities: Authorities) -> None:
    """Both the question for the primary and the way to it are encrypted, for every client."""
    certificate = authorities.ours.issue_cert("127.0.0.1")
    with (
        TlsProxy(shared_valkey.port, certificate) as server,
        Sentinel(server.port, shared_valkey.password, service="queue", password="watch", quorum=1) as sentinel,
        TlsProxy(sentinel.port, certificate) as watcher,
    ):
        login = f":{shared_valkey.password}@127.0.0.1:{watcher.port}/queue/0?sentinel_password=watch"
        url = f"rediss+sentinel://{login}&ssl_ca_certs={authorities.file}"
        with connect(url) as client:
            client.set("key", "value")
        assert read(url, "key") == "value"
        assert send_and_receive(app_of(url), "over TLS") == "over TLS"
        untrusting = f"rediss+sentinel://{login}&ssl_ca_certs={authorities.other_file}"
        with connect(untrusting) as client, pytest.raises(QueueUnavailable, match=UNTRUSTED), queue_errors():
            client.ping()
