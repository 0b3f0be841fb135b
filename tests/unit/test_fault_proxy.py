"""What each fault of the proxy looks like to a client, before a server that sends back what it gets."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fault_proxy import (
    ANSWERS_LOST,
    BLACK_HOLE,
    CLEAR,
    HALF_OPEN,
    RESET,
    SLOW_CLOSE,
    Fault,
    FaultProxy,
)

PATIENCE_SECONDS = 20.0
SILENT_SECONDS = 0.2
"""In which an echo that is not held back has long come."""


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while piece := self.request.recv(65536):
            self.server.received += piece  # type: ignore[attr-defined]  # set by the fixture
            self.request.sendall(piece)


class EchoServer(socketserver.ThreadingTCPServer):
    received = b""

    def handle_error(self, request: object, client_address: object) -> None:
        """A reset connection is what these tests are about, and no news."""


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.server_address[1]) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    """A connection that has carried something already."""
    with connect(proxy) as client:
        assert echo(client, b"hello") == b"hello"
        yield client


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_SECONDS)


def echo(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    received = b""
    while len(received) < len(text) and (piece := client.recv(65536)):
        received += piece
    return received


def assert_silent(client: socket.socket, text: bytes) -> None:
    client.settimeout(SILENT_SECONDS)
    with pytest.raises(TimeoutError):
        echo(client, text)
    client.settimeout(PATIENCE_SECONDS)


def test_without_a_fault_everything_passes(client: socket.socket) -> None:
    assert echo(client, b"x" * 200_000) == b"x" * 200_000


def test_a_client_that_closes_is_closed_to_the_server(proxy: FaultProxy, client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""


def test_latency_counts_both_ways(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.switch(Fault(delay_seconds=0.1, jitter_seconds=0.05))
    started = time.monotonic()
    assert echo(client, b"late") == b"late"
    assert time.monotonic() - started >= 0.2


def test_throttled_bytes_take_their_time(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.switch(Fault(bytes_per_second=10_000))
    started = time.monotonic()
    assert echo(client, b"x" * 2000) == b"x" * 2000
    assert time.monotonic() - started >= 0.4


def test_a_reset_breaks_open_and_new_connections(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.switch(RESET)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionResetError), connect(proxy) as another:
        another.recv(1)
    proxy.switch(CLEAR)
    with connect(proxy) as another:
        assert echo(another, b"again") == b"again"


def test_half_open_holds_everything_back_until_it_ends(
    proxy: FaultProxy, client: socket.socket, server: EchoServer
) -> None:
    """What was sent meanwhile arrives late, as on a line that was down for a moment."""
    proxy.switch(HALF_OPEN)
    assert_silent(client, b"held")
    with connect(proxy) as another:
        assert_silent(another, b"new")
    assert server.received == b"hello"
    proxy.switch(CLEAR)
    assert client.recv(100) == b"held"


def test_a_black_hole_swallows_and_its_connections_do_not_come_back(
    proxy: FaultProxy, client: socket.socket, server: EchoServer
) -> None:
    proxy.switch(BLACK_HOLE)
    assert_silent(client, b"swallowed")
    proxy.switch(CLEAR)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert server.received == b"hello"


def test_lost_answers_are_lost_after_the_server_has_acted(
    proxy: FaultProxy, client: socket.socket, server: EchoServer
) -> None:
    proxy.switch(ANSWERS_LOST)
    assert_silent(client, b" done")
    assert server.received == b"hello done"


def test_a_slow_close_says_nothing_and_then_ends_in_order(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.switch(SLOW_CLOSE)
    started = time.monotonic()
    assert echo(client, b"unheard") == b""
    assert time.monotonic() - started >= SILENT_SECONDS
    with connect(proxy) as another:
        assert echo(another, b"unheard") == b""


def test_without_its_server_connections_end(server: EchoServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with FaultProxy(unused.getsockname()[1]) as proxy, connect(proxy) as client:
            assert client.recv(1) == b""
