"""Webhook endpoints: the receivers that an owner has named once for all events of some types.

Keys: `tandem:webhook-endpoint:<id>` hash: `record` (JSON, what its owner has chosen, and its secrets), and what the
deliveries leave (written by transitions/webhooks.lua): `note`, `delivered_at`, `failing_since`, `disabled_at`, in
milliseconds of the server's clock; `tandem:webhook-endpoints` and `tandem:webhook-endpoints:<owner>` sorted sets of
ids by creation (microseconds); `tandem:webhook-tries:<id>` hash: event -> tries of its message that have failed.
"""

import base64
import secrets
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import redis
from pydantic import BaseModel, ConfigDict

from tandem.errors import InvalidRequest, UnknownEndpoint
from tandem.function_library import PREFIX
from tandem.job_store import JobStore
from tandem.webhooks.event_types import EventType
from tandem.webhooks.signature import PREFIX as SECRET_PREFIX
from tandem.webhooks.signature import Signer

MAX_ENDPOINTS = 32
"""Of one owner: each event is sent to all of them that ask for it."""
KEY_BYTES = 32
"""Of a new secret: the key length of its HMAC-SHA256."""
OLD_SECRET_SECONDS = 24 * 3600
"""How long a secret that was replaced may go on signing (OpenAI's figure)."""


class SigningSecret(BaseModel):
    model_config = ConfigDict(frozen=True)

    text: str
    """`whsec_<base64>`."""
    expires_at: float | None = None
    """Seconds since the epoch, of one that was replaced; None: it is the endpoint's own."""

    @classmethod
    def new(cls) -> "SigningSecret":
        return cls(text=SECRET_PREFIX + base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode())


class EndpointRecord(BaseModel):
    """What an endpoint's owner has chosen. Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    name: str
    url: str
    event_types: tuple[EventType, ...]
    secrets: tuple[SigningSecret, ...]
    """The endpoint's own first."""
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint as it stands. Times are seconds since the epoch."""

    record: EndpointRecord
    note: str | None
    """How the last try went."""
    delivered_at: float | None
    failing_since: float | None
    """Since when every try has failed."""
    disabled_at: float | None
    """Since when it is told nothing more, for it has failed for days or wants no more messages."""

    @property
    def secret(self) -> str:
        return self.record.secrets[0].text

    def signer(self, now: float) -> Signer:
        """Of all secrets that are valid at `now`, in seconds since the epoch."""
        valid = [one.text for one in self.record.secrets if one.expires_at is None or one.expires_at > now]
        return Signer(valid)


class EndpointStore:
    """Endpoints of every owner. `owner` is whose there are to a call; None: everybody's. Every method raises
    QueueUnavailable."""

    def __init__(self, jobs: JobStore) -> None:
        self._redis, self._guard = jobs.redis, jobs.guard

    def create(self, *, owner: str, name: str, url: str, event_types: Sequence[EventType]) -> Endpoint:
        """A new endpoint with a secret of its own. Raises InvalidRequest when the owner has MAX_ENDPOINTS already."""
        with self._guard():
            count = self._redis.zcard(_index(owner))
        if count >= MAX_ENDPOINTS:
            raise InvalidRequest(f"there are {count} webhook endpoints, and the limit is {MAX_ENDPOINTS}: delete one")
        now = int(time.time())
        record = EndpointRecord(
            id=f"we_{uuid.uuid4().hex[:24]}",
            owner=owner,
            name=name,
            url=url,
            event_types=tuple(event_types),
            secrets=(SigningSecret.new(),),
            created_at=now,
            updated_at=now,
        )
        with self._guard(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(_key(record.id), "record", record.model_dump_json())
            for index in (_index(None), _index(owner)):
                pipe.zadd(index, {record.id: time.time_ns() // 1000})
            pipe.execute()
        return self.get(record.id, owner=owner)

    def get(self, endpoint_id: str, *, owner: str | None = None) -> Endpoint:
        """Raises UnknownEndpoint, also for another owner's."""
        with self._guard():
            fields = self._redis.hgetall(_key(endpoint_id))
        if "record" not in fields:
            raise _unknown(endpoint_id)
        endpoint = _endpoint(fields)
        if owner is not None and endpoint.record.owner != owner:
            raise _unknown(endpoint_id)
        return endpoint

    def list(self, owner: str | None) -> list[Endpoint]:
        """Newest first."""
        with self._guard():
            ids = self._redis.zrange(_index(owner), 0, -1, desc=True)
        with self._guard(), self._redis.pipeline(transaction=False) as pipe:
            for endpoint_id in ids:
                pipe.hgetall(_key(endpoint_id))
            records = pipe.execute()
        # One may be deleted between the two reads.
        return [_endpoint(fields) for fields in records if "record" in fields]

    def update(
        self,
        endpoint_id: str,
        *,
        owner: str | None,
        name: str | None = None,
        url: str | None = None,
        event_types: Sequence[EventType] | None = None,
    ) -> Endpoint:
        """Change what is given; what changes nothing leaves `updated_at` too. Raises UnknownEndpoint."""
        given = {
            "name": name,
            "url": url,
            "event_types": None if event_types is None else tuple(event_types),
        }
        changes = {field: value for field, value in given.items() if value is not None}
        return self._change(endpoint_id, owner, lambda record: record.model_copy(update=changes))

    def enable(self, endpoint_id: str, *, owner: str | None) -> Endpoint:
        """Tell an endpoint again that had been disabled, from now on. Raises UnknownEndpoint."""
        self.get(endpoint_id, owner=owner)
        with self._guard():
            self._redis.hdel(_key(endpoint_id), "disabled_at", "failing_since")
        return self.get(endpoint_id, owner=owner)

    def rotate_secret(self, endpoint_id: str, *, owner: str | None, keep_old: bool) -> Endpoint:
        """Give an endpoint a new secret; with `keep_old` the one before signs too, for OLD_SECRET_SECONDS.

        Raises UnknownEndpoint.
        """

        def rotated(record: EndpointRecord) -> EndpointRecord:
            if not keep_old:
                return record.model_copy(update={"secrets": (SigningSecret.new(),)})
            now = time.time()
            own, *older = record.secrets
            replaced = SigningSecret(text=own.text, expires_at=now + OLD_SECRET_SECONDS)
            kept = [one for one in older if one.expires_at is not None and one.expires_at > now]
            return record.model_copy(update={"secrets": (SigningSecret.new(), replaced, *kept)})

        return self._change(endpoint_id, owner, rotated)

    def delete(self, endpoint_id: str, *, owner: str | None) -> None:
        """Forget an endpoint; what it has not been told yet falls away. Raises UnknownEndpoint."""
        record = self.get(endpoint_id, owner=owner).record
        with self._guard(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(_key(endpoint_id), tries_key(endpoint_id))
            for index in (_index(None), _index(record.owner)):
                pipe.zrem(index, endpoint_id)
            pipe.execute()

    def _change(
        self, endpoint_id: str, owner: str | None, change: Callable[[EndpointRecord], EndpointRecord]
    ) -> Endpoint:
        while True:
            with self._guard(), self._redis.pipeline(transaction=True) as pipe:
                pipe.watch(_key(endpoint_id))
                record = self.get(endpoint_id, owner=owner).record
                changed = change(record)
                if changed == record:
                    break
                changed = changed.model_copy(update={"updated_at": int(time.time())})
                pipe.multi()
                pipe.hset(_key(endpoint_id), "record", changed.model_dump_json())
                try:
                    pipe.execute()
                    break
                except redis.WatchError:
                    continue  # a delivery was noted, or another request has changed it
        return self.get(endpoint_id, owner=owner)


def tries_key(endpoint_id: str) -> str:
    return f"{PREFIX}webhook-tries:{endpoint_id}"


def _key(endpoint_id: str) -> str:
    return f"{PREFIX}webhook-endpoint:{endpoint_id}"


def _index(owner: str | None) -> str:
    return f"{PREFIX}webhook-endpoints" + ("" if owner is None else f":{owner}")


def _endpoint(fields: Mapping[str, str]) -> Endpoint:
    def seconds(name: str) -> float | None:
        return int(fields[name]) / 1000 if name in fields else None

    return Endpoint(
        record=EndpointRecord.model_validate_json(fields["record"]),
        note=fields.get("note"),
        delivered_at=seconds("delivered_at"),
        failing_since=seconds("failing_since"),
        disabled_at=seconds("disabled_at"),
    )


def _unknown(endpoint_id: str) -> UnknownEndpoint:
    return UnknownEndpoint(f"there is no webhook endpoint {endpoint_id!r}", param="webhook_endpoint_id")
