"""Very many clients that each hold one streamed chat open, all in one process: sockets and nothing else, so that they
take little of the machine on which the server is measured."""

import asyncio
import http
import json
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

from api.open_requests import raise_file_limit
from bench.trickling_worker import MODEL

BODY = json.dumps(
    {"model": MODEL, "messages": [{"role": "user", "content": "Tell a long story."}], "stream": True}
).encode()


@dataclass(slots=True)
class Stream:
    """What came over one connection."""

    refusal: str = ""
    """What was answered instead of a stream."""
    first_seconds: float = 0.0
    """From the moment when all ask to the first piece of text."""
    pieces: int = 0
    is_complete: bool = False
    """It ended as OpenAI's streams end."""


def hold(url: str, key: str, count: int, told: Connection) -> None:
    """Open so many streams at the same moment, and read all of them to their ends.

    The body of a process of its own. Sends the refusals when each of the others has begun, and the
    streams at the end.
    """
    raise_file_limit()
    asyncio.run(_hold(url, key, count, told))


async def _hold(url: str, key: str, count: int, told: Connection) -> None:
    began = time.perf_counter()
    streams = [Stream() for _ in range(count)]
    begun = [asyncio.Event() for _ in range(count)]
    readers = [
        asyncio.create_task(_read(url, key, stream, began, event))
        for stream, event in zip(streams, begun, strict=True)
    ]
    for event in begun:
        await event.wait()
    told.send([stream.refusal for stream in streams if stream.refusal])
    await asyncio.gather(*readers)
    told.send(streams)


async def _read(url: str, key: str, stream: Stream, began: float, begun: asyncio.Event) -> None:
    where = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {where.netloc}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\nconnection: close\r\n\r\n".encode()
            + BODY
        )
        if int((await reader.readline()).split()[1]) != http.HTTPStatus.OK:
            stream.refusal = (await reader.read()).decode().rpartition("\r\n")[2]
        async for line in reader:
            if line.startswith(b"data: [DONE]"):
                stream.is_complete = True
            elif line.startswith(b"data: ") and b'"content":""' not in line and b'"content":"' in line:
                stream.pieces += 1
                if stream.pieces == 1:
                    stream.first_seconds = time.perf_counter() - began
                    begun.set()
        writer.close()
    finally:
        # A refused one never begins.
        begun.set()
