"""TLS in front of a server that has none (the embedded one): real handshakes, a certificate made for the test."""

import asyncio
import contextlib
import ssl
import threading
from types import TracebackType
from typing import Self

import trustme

HANDSHAKE = b"\x16"
"""The first byte of a TLS connection; no command of the Redis protocol begins with it."""
CHUNK_BYTES = 2**16
STEP_SECONDS = 60.0
"""Starting and stopping take milliseconds."""


class TlsProxy:
    """Listens on `port` of loopback. A connection that does not begin with TLS is passed on as it is.

    So one port is both what clients reach by TLS and what a Sentinel, which here can only speak without, watches.
    """

    def __init__(self, target_port: int, certificate: trustme.LeafCert) -> None:
        self._target_port = target_port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._tls_port, self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(STEP_SECONDS)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(STEP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STEP_SECONDS)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _listen(self) -> tuple[int, int]:
        inner = await asyncio.start_server(self._decrypted, "127.0.0.1", 0, ssl=self._context)
        outer = await asyncio.start_server(self._arrived, "127.0.0.1", 0)
        self._servers = [inner, outer]
        return inner.sockets[0].getsockname()[1], outer.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(1)
        await _relay(reader, writer, self._tls_port if first == HANDSHAKE else self._target_port, first)

    async def _decrypted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _relay(reader, writer, self._target_port)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, first: bytes = b"") -> None:
    with contextlib.closing(writer):
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(their_writer):
            their_writer.write(first)
            ways = [
                asyncio.create_task(_copy(reader, their_writer)),
                asyncio.create_task(_copy(their_reader, writer)),
            ]
            # The end of one way is the end of the connection.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
