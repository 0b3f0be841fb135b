"""Reads server-sent events from an open httpx answer (WHATWG HTML standard, section 9.2.6)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Sent:
    """One event as it came over the wire."""

    id: str = ""
    type: str = "message"
    lines: list[str] = field(default_factory=list)

    @property
    def data(self) -> Any:
        return json.loads("\n".join(self.lines))


def events_of(answer: httpx.Response) -> Iterator[Sent]:
    """Every event until the server ends the stream; heartbeats (comments) are left out."""
    event = Sent()
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if not line and event.lines:
            yield event
            event = Sent()
        elif name == "id":
            event.id = value
        elif name == "event":
            event.type = value
        elif name == "data":
            event.lines.append(value)
