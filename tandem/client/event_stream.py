"""A job's events over HTTP: server-sent events, read on after a lost connection.

The wire form is the WHATWG's (HTML standard, section 9.2): `id:`, `event:` and `data:` lines, an empty line after
each event, comments that begin with a colon.
"""

import json
import time
from collections.abc import Iterable, Iterator

import httpx

from tandem.client.transport import CONNECT_SECONDS, Transport, error_of, pauses
from tandem.errors import ServiceUnreachable, TandemError, WaitTimeout
from tandem.job import JobEvent

SILENCE_SECONDS = 45.0
"""The service sends a comment at least every 15 s: three missed ones mean that the connection is dead."""
RECONNECTS = 8
"""Tries in a row without one event, over about half a minute: a service that restarts is back by then."""
DEADLINE_SLACK_SECONDS = 1.0
"""How far a deadline may be overrun: near it, the stream is opened anew with a shorter limit, this often."""


def follow(
    transport: Transport, job_id: str, *, after: str | None = None, timeout: float | None = None
) -> Iterator[JobEvent]:
    """Every event after the one named, each once, until the one that ends the job.

    Raises WaitTimeout after `timeout` seconds; ServiceUnreachable or QueueUnavailable if the service stays away for
    half a minute; UnknownJob, AuthenticationFailed.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    waits = pauses(RECONNECTS)
    while True:
        try:
            for event in _read_once(transport, job_id, after, deadline):
                if event is None:
                    return
                after, waits = event.id, pauses(RECONNECTS)
                yield event
                if event.ends_the_job:
                    return
        except TandemError as error:
            if isinstance(error, WaitTimeout) or not error.retryable:
                raise
            pause = next(waits)
            if pause is None:
                raise
        else:
            continue
        remaining = _remaining(job_id, deadline)
        time.sleep(pause if remaining is None else min(pause, remaining))


def _read_once(
    transport: Transport, job_id: str, after: str | None, deadline: float | None
) -> Iterator[JobEvent | None]:
    """The events of one connection; None if no more will come after `after`.

    It ends without an error when the deadline asks for a shorter limit.
    """
    remaining = _remaining(job_id, deadline)
    limit = SILENCE_SECONDS if remaining is None else min(SILENCE_SECONDS, remaining)
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
    timeouts = (CONNECT_SECONDS, limit, limit, limit)
    parser = EventParser()
    with transport.stream(f"/jobs/{job_id}/events", headers=headers, timeout=timeouts) as response:
        if response.status_code == httpx.codes.NO_CONTENT:
            yield None
            return
        for chunk in response.iter_bytes():
            for event in parser.feed(chunk):
                if event.type == "error":
                    raise error_of(event.data.get("error", event.data))
                yield event
            remaining = _remaining(job_id, deadline)
            if remaining is not None and remaining + DEADLINE_SLACK_SECONDS < limit:
                return
    raise ServiceUnreachable(f"the stream of {job_id} ended before the job did")


def _remaining(job_id: str, deadline: float | None) -> float | None:
    """Seconds until the deadline. Raises WaitTimeout when it is over."""
    if deadline is None:
        return None
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise WaitTimeout(f"{job_id} did not end within the time that you waited; it goes on")
    return remaining


class EventParser:
    """Turns the bytes of a stream into events, wherever the bytes are cut.

    Lines are split at line feeds alone: JSON text may hold the other separators that `str.splitlines` knows.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._id = ""
        self._type = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterable[JobEvent]:
        """The events that are whole with these bytes. Raises ValueError if an event's data is not JSON."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r").decode()
            if not text:
                if self._data:
                    yield JobEvent(self._id, self._type or "message", json.loads("\n".join(self._data)))
                self._type, self._data = "", []
                continue
            field, _, value = text.partition(":")
            value = value.removeprefix(" ")
            if field == "id":
                self._id = value
            elif field == "event":
                self._type = value
            elif field == "data":
                self._data.append(value)
