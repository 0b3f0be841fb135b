"""Ports to listen on: refused with a clear error before anything is started, or chosen free."""

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from tandem.errors import ConfigurationError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class PortWish:
    option: str
    """What the user changes to get another port."""
    host: str
    port: int
    """0: any free one."""


def reserve(wishes: Sequence[PortWish]) -> list[int]:
    """The ports to use, all different, each of which could be bound just now.

    Raises ConfigurationError naming the port and its option. Another program may still take a port between this
    check and its use; the child that finds it taken then says so in its log.
    """
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        for wish in wishes:
            if wish.port and wish.port in ports:
                raise ConfigurationError(
                    f"port {wish.port} is wanted twice; choose another with `{wish.option}`", param=wish.option
                )
            held.append(_bound(wish))
            ports.append(held[-1].getsockname()[1])
    finally:
        for bound in held:
            bound.close()
    return ports


def _bound(wish: PortWish) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(wish.host, wish.port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"`--host` {wish.host!r} is no address of this machine", param="--host") from error
    bound = socket.socket(family, kind)
    if wish.port:
        # As the servers do: connections that have ended and linger do not keep them from their port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        # Bound is not enough: two sockets with SO_REUSEADDR may be bound to one port, but not listen on it.
        bound.listen(1)
    except OSError as error:
        bound.close()
        raise _refusal(wish, error) from error
    return bound


def _refusal(wish: PortWish, error: OSError) -> ConfigurationError:
    if error.errno == errno.EADDRINUSE:
        return ConfigurationError(
            f"port {wish.port} of {wish.host} is in use; stop what uses it, or choose another with `{wish.option}`",
            param=wish.option,
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigurationError(f"`--host` {wish.host!r} is no address of this machine", param="--host")
    return ConfigurationError(
        f"port {wish.port} of {wish.host} cannot be used ({error.strerror}); choose another with `{wish.option}`",
        param=wish.option,
    )
