"""The server-side functions under a clock that the test sets, and with bounds so small that a short run meets them.

Nothing else of the library is changed: each replacement is of text that must be there, exactly once.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tandem.function_library import library_source

CLOCK = "test:clock"
"""The key that holds the time, in milliseconds."""
EXPIRIES = "test:expiries"
"""A zset of the keys that expire -> when, by that clock. The server's own clock would be the wrong one for them."""

AGED_TURN = 3
TICKETS_KEPT = 4
EXPIRED_AT_ONCE = 2
PRUNED_AT_ONCE = 3
SWEEP_LIMIT = 4
"""Of job_upkeep.py, not of the library: jobs of one sweeping call."""

_BOUNDS = (
    ("local AGED_TURN = 8 ", f"local AGED_TURN = {AGED_TURN} "),
    ("local TICKETS_KEPT = 64 ", f"local TICKETS_KEPT = {TICKETS_KEPT} "),
    ("local EXPIRED_AT_ONCE = 200 ", f"local EXPIRED_AT_ONCE = {EXPIRED_AT_ONCE} "),
    ("local PRUNED_AT_ONCE = 200 ", f"local PRUNED_AT_ONCE = {PRUNED_AT_ONCE} "),
)

_READS_THE_TIME = """\
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""
_READS_THE_KEY = f"""\
local function now_ms() return tonumber(redis.call('GET', '{CLOCK}')) end
"""

_EXPIRES_BY_THE_CLOCK = f"""\
-- The global of that name while a function runs is another one than while the library is loaded.
local function server_call(...) return redis.call(...) end
local redis = {{ register_function = redis.register_function }}
do
  local function expires(key, ttl_ms)
    server_call('ZADD', '{EXPIRIES}', server_call('GET', '{CLOCK}') + ttl_ms, key)
  end
  function redis.call(command, key, ...)
    local rest = {{ ... }}
    if command == 'PEXPIRE' then return expires(key, rest[1]) end
    if command == 'SET' and rest[#rest - 1] == 'PX' then
      local ttl_ms = table.remove(rest)
      table.remove(rest)
      local done = server_call('SET', key, unpack(rest))
      if done then expires(key, ttl_ms) end
      return done
    end
    if command == 'DEL' then server_call('ZREM', '{EXPIRIES}', key, ...) end
    return server_call(command, key, ...)
  end
end
"""

_MOVE_THE_CLOCK = f"""\
local now = redis.call('INCRBY', '{CLOCK}', ARGV[1])
for _, key in ipairs(redis.call('ZRANGEBYSCORE', '{EXPIRIES}', '-inf', '(' .. now)) do
  redis.call('DEL', key)
  redis.call('ZREM', '{EXPIRIES}', key)
end
"""

_EVERYTHING = """\
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, value = redis.call('TYPE', key).ok, nil
  if kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'list' then value = redis.call('LRANGE', key, 0, -1)
  elseif kind == 'string' then value = redis.call('GET', key)
  elseif kind == 'stream' then
    value = {}
    for i, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do value[i] = entry[2] end
  end
  table.insert(found, { key, kind, value })
end
return cjson.encode(found)
"""


def replaced(source: str, old: str, new: str) -> str:
    """The source with one passage replaced. Raises AssertionError unless it is there exactly once."""
    assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in the library, and must be there once"
    return source.replace(old, new)


def clocked_source(source: str | None = None) -> str:
    """The library (or a mutant of it) under the clock of the test."""
    text = replaced(library_source() if source is None else source, _READS_THE_TIME, _READS_THE_KEY)
    for real, small in _BOUNDS:
        text = replaced(text, real, small)
    first, rest = text.split("\n", 1)
    assert first.startswith("#!lua name=")
    return f"{first}\n{_EXPIRES_BY_THE_CLOCK}{rest}"


Contents = dict[str, Any]
"""Every key of the queue -> its value: a dict for a hash or a zset, a list, a string, or a stream's (type, data)s."""


@dataclass(slots=True)
class Clock:
    """The server's clock, and that of the process that calls it, which may lag behind."""

    server_ms: int
    lag_ms: int = 0

    def monotonic(self) -> float:
        """In place of `time.monotonic`: seconds."""
        return (self.server_ms - self.lag_ms) / 1000


class ClockedServer:
    """A Valkey server with the clocked library."""

    def __init__(self, client: Any, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._move = client.register_script(_MOVE_THE_CLOCK)
        self._read = client.register_script(_EVERYTHING)

    def load(self, source: str | None = None) -> None:
        """Give the server the library, or a mutant of it, in place of the one it has."""
        self._client.function_load(clocked_source(source), replace=True)

    def reset(self, now: int) -> None:
        """Empty the server and set both clocks."""
        self._clock.server_ms, self._clock.lag_ms = now, 0
        with self._client.pipeline(transaction=False) as pipe:
            pipe.flushdb()
            pipe.set(CLOCK, now)
            pipe.execute()

    def move_clock(self, milliseconds: int) -> None:
        """Let time pass; what has expired by then is gone."""
        self._clock.server_ms += milliseconds
        self._move(args=[milliseconds])

    def contents(self) -> Contents:
        """All that is in the server, but for the clock."""
        return {
            key: _READERS[kind](value) for key, kind, value in json.loads(self._read()) if not key.startswith("test:")
        }


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _scores(flat: list[str]) -> dict[str, float]:
    return {member: float(score) for member, score in zip(flat[::2], flat[1::2], strict=True)}


def _events(entries: list[list[str]]) -> list[tuple[str, Any]]:
    return [(kind, json.loads(data)) for _, kind, _, data in entries]


_READERS: dict[str, Callable[[Any], Any]] = {
    "hash": _pairs,
    "zset": _scores,
    "list": list,
    "string": str,
    "stream": _events,
}
