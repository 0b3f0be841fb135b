"""Ports are chosen, or refused by name, before anything is started."""

import socket

import pytest

from tandem.errors import ConfigurationError
from tandem.ports import LOOPBACK, PortWish, reserve


def test_free_ports_are_different_and_can_be_bound() -> None:
    ports = reserve([PortWish("--port", LOOPBACK, 0) for _ in range(20)])
    assert len(set(ports)) == 20
    for port in ports:
        socket.create_server((LOOPBACK, port)).close()


def test_a_free_port_is_taken_as_it_is() -> None:
    (port,) = reserve([PortWish("--port", LOOPBACK, 0)])
    assert reserve([PortWish("--port", LOOPBACK, port)]) == [port]


@pytest.mark.parametrize("listens_on", [LOOPBACK, ""])
def test_a_port_in_use_is_refused(listens_on: str) -> None:
    """Also one that another program holds on every address (the empty host)."""
    with socket.create_server((listens_on, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} .*`--flower-port`"):
            reserve([PortWish("--port", LOOPBACK, 0), PortWish("--flower-port", LOOPBACK, port)])


def test_one_port_for_two_servers_is_refused() -> None:
    (port,) = reserve([PortWish("--port", LOOPBACK, 0)])
    with pytest.raises(ConfigurationError, match=f"port {port} is wanted twice"):
        reserve([PortWish("--port", LOOPBACK, port), PortWish("--flower-port", LOOPBACK, port)])


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="--host"):
        reserve([PortWish("--port", host, 0)])
