"""Looks host names up, apart from everything else: a slow name server must hold up nothing but its own webhooks."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

THREADS = 16
"""Look-ups at the same time. A thread cannot be stopped, and the C library may wait for half a minute in it: those
of the event loop's own pool, in which the queue is asked, are not lent for that."""


class Resolver(Protocol):
    """Finds the addresses of a host."""

    async def addresses(self, host: str, port: int) -> list[str]:
        """The preferred one first. Raises OSError if there are none."""

    def close(self) -> None:
        """Ask nothing more."""


class SystemResolver:
    """The operating system's look-up (its order of addresses, its hosts file), in threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="webhook-resolver")

    async def addresses(self, host: str, port: int) -> list[str]:
        """The host's addresses. Raises OSError if it has none or the name server does not answer."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    # The same address may come from several sources; order matters, so no set.
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
