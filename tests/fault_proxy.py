"""A TCP proxy before a server that brings the faults of a network, switched while it runs.

What a connection loses is never made good: a stream with a hole in it cannot go on, so such connections are reset
when the fault ends, as they are by a host that has forgotten them.
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

CHUNK_BYTES = 64 * 1024
STOP_SECONDS = 60.0
LINGER_ZERO = struct.pack("ii", 1, 0)
"""SO_LINGER, on, for 0 s: closing sends RST and no FIN."""

T = TypeVar("T")
Direction = Literal["request", "answer"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What the proxy does to every connection, those that are open included."""

    delay_seconds: float = 0.0
    """Before each piece is passed on, in either direction."""
    jitter_seconds: float = 0.0
    """Up to so much more, by chance."""
    bytes_per_second: float | None = None
    holds: bool = False
    """Half-open: connections stay open, new ones are accepted, nothing is passed on until the fault ends."""
    drops_requests: bool = False
    """What clients send is taken and thrown away."""
    drops_answers: bool = False
    """What the server sends is."""
    resets: bool = False
    """Connections are reset, new ones as soon as they are accepted."""
    closes_after_seconds: float | None = None
    """Connections carry nothing more, and are closed in order after so long."""


CLEAR = Fault()
RESET = Fault(resets=True)
HALF_OPEN = Fault(holds=True)
BLACK_HOLE = Fault(drops_requests=True, drops_answers=True)
ANSWERS_LOST = Fault(drops_answers=True)
"""The server does what it is asked to, and nobody learns of it."""
SLOW_CLOSE = Fault(closes_after_seconds=0.3)


class _Connection:
    """One client's way to the server. Lives in the proxy's event loop."""

    def __init__(self, proxy: "FaultProxy", client: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self._proxy = proxy
        self._client_reader, self._client_writer = client
        self._server_writer: asyncio.StreamWriter | None = None
        self.has_hole = False
        """Bytes of it were thrown away."""

    async def run(self, server_port: int) -> None:
        try:
            server_reader, self._server_writer = await asyncio.open_connection("127.0.0.1", server_port)
            await asyncio.gather(
                self._pump(self._client_reader, self._server_writer, "request"),
                self._pump(server_reader, self._client_writer, "answer"),
            )
        except OSError:
            # The server is away: to the client that is a connection that ends.
            return
        finally:
            self.close()

    def close(self) -> None:
        for writer in (self._client_writer, self._server_writer):
            if writer is not None:
                writer.close()

    def reset(self) -> None:
        for writer in (self._client_writer, self._server_writer):
            if writer is not None and not writer.is_closing():
                connection: socket.socket = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
                writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
        try:
            while piece := await reader.read(CHUNK_BYTES):
                if await self._passes(len(piece), direction):
                    writer.write(piece)
                    await writer.drain()
                else:
                    self.has_hole = True
        except ConnectionError:
            # One side is gone; the other is closed as well.
            return
        finally:
            # Its reader sees the end then, and the other pump ends too.
            writer.close()

    async def _passes(self, size: int, direction: Direction) -> bool:
        """Wait as the fault will have it; whether the piece goes on then."""
        while self._proxy.fault.holds:
            await self._proxy.changed()
        fault = self._proxy.fault
        pause = fault.delay_seconds + random.uniform(0.0, fault.jitter_seconds)
        if fault.bytes_per_second is not None:
            pause += size / fault.bytes_per_second
        await asyncio.sleep(pause)
        if fault.closes_after_seconds is not None:
            return False
        return not (fault.drops_requests if direction == "request" else fault.drops_answers)


class FaultProxy:
    """Listens on a loopback port of its own from its start; runs in a thread. Thread-safe."""

    def __init__(self, server_port: int) -> None:
        self.fault = CLEAR
        self.port = 0
        self._server_port = server_port
        self._connections: dict[_Connection, asyncio.Task[Any]] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy")
        self._thread.start()
        self._listener = self._call(self._listen())

    def switch(self, fault: Fault) -> None:
        """From now on this fault; returns when it is in force."""
        self._call(self._switch(fault))

    def close(self) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def changed(self) -> None:
        """Until the fault is switched. In the event loop."""
        future = self._loop.create_future()
        self._waiting.append(future)
        await future

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(STOP_SECONDS)

    async def _listen(self) -> asyncio.Server:
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        return listener

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, (reader, writer))
        if self.fault.resets:
            connection.reset()
            return
        task = asyncio.current_task()
        assert task is not None, "asyncio runs this as a task"
        self._connections[connection] = task
        if self.fault.closes_after_seconds is not None:
            self._close_later(connection, self.fault.closes_after_seconds)
        try:
            await connection.run(self._server_port)
        except asyncio.CancelledError:
            # Only `close` cancels, and asyncio would log it as an error.
            return
        finally:
            del self._connections[connection]

    async def _switch(self, fault: Fault) -> None:
        self.fault = fault
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        for connection in list(self._connections):
            if fault.resets or (connection.has_hole and fault == CLEAR):
                connection.reset()
            elif fault.closes_after_seconds is not None:
                self._close_later(connection, fault.closes_after_seconds)

    def _close_later(self, connection: _Connection, seconds: float) -> None:
        self._loop.call_later(seconds, connection.close)

    async def _end(self) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.reset()
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
