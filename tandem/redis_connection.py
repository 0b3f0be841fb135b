"""Connections to the queue's Redis server, all made from the one URL in TANDEM_REDIS_URL.

    redis://[user][:password]@host:6379/0        one server
    rediss://…?ssl_ca_certs=/path/ca.pem         the same over TLS; the certificate is always checked
    unix://[user][:password]@/path/to.sock?db=0  a server on this machine
    redis+sentinel://[user][:password]@host1:26379,host2:26379/mymaster/0?sentinel_password=…
                                                 the primary that these Sentinels know by the name `mymaster`
    rediss+sentinel://…                          the same, with TLS to the Sentinels and to the server

After a failover every client here asks the Sentinels again and goes on with the new primary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from tandem.redis_url import RedisUrl

CONNECT_SECONDS = 0.5
"""To open a connection. In one data centre it takes a few milliseconds; the rest is for a busy machine."""
ANSWER_SECONDS = 0.9
"""For one answer. With CONNECT_SECONDS it bounds a call to a server that hangs: an API request ends within 1.5 s."""
MAX_CONNECTIONS = 2048
"""Of one client: one for each thread that calls at the same time, of which a worker may have 1,024 (redis-py's
default is 100; a server takes 10,000)."""
SENTINEL_SECONDS = 0.2
"""To reach a Sentinel, and for its answer. Three Sentinels that all hang are asked twice each within 1.2 s."""


def connect(url: str, *, answer_seconds: float = ANSWER_SECONDS, once: bool = False) -> Any:
    """A client whose calls end in seconds, whatever the server does. Raises ConfigurationError for a faulty URL.

    `once`: no call is ever sent twice, not even when a pooled connection has died.

    Typed as Any: the stubs of redis-py do not know that `decode_responses` makes every answer text.
    """
    address = RedisUrl.parse(url)
    options = {
        **_server_options(address, answer_seconds),
        "max_connections": MAX_CONNECTIONS,
        # One more try on a new connection: a pooled one may have died with a restarted server. Every transition but
        # a claim may be sent twice without harm: submit by its id, the others by their fence. A call that timed out
        # is not tried again: the server hangs, and whoever asked has waited long enough.
        "retry": Retry(NoBackoff(), 0 if once else 1, (redis.ConnectionError,)),
    }
    if address.service is None:
        return redis.Redis(**options)
    return _client_of_primary(address, options, _Sentinels, _PrimaryPool)


def connect_async(url: str, *, socket_timeout: float, max_connections: int) -> redis.asyncio.Redis:
    """A client for asyncio; close it with `aclose`. Raises ConfigurationError for a faulty URL.

    `socket_timeout` (seconds) must be longer than the longest blocking read; each of those holds one of
    `max_connections` connections.
    """
    address = RedisUrl.parse(url)
    options = {
        **_server_options(address, socket_timeout),
        # Longer than in `connect`: here it also counts what the event loop does meanwhile. A thousand clients that
        # came at the same moment kept it so busy that half of them were told that the server does not answer.
        "socket_connect_timeout": socket_timeout,
        "max_connections": max_connections,
        # As in `connect`; redis-py's own default waits for seconds between ten tries.
        "retry": AsyncRetry(NoBackoff(), 1, (redis.ConnectionError,)),
    }
    if address.service is None:
        return redis.asyncio.Redis(**options)
    client: redis.asyncio.Redis = _client_of_primary(address, options, _AsyncSentinels, _AsyncPrimaryPool)
    return client


@dataclass(frozen=True, slots=True)
class CeleryBroker:
    """The same server in the words of Celery: `broker_url`, `broker_transport_options`, `broker_use_ssl`."""

    url: str = field(repr=False)
    """With its password, which kombu wants inside."""
    transport_options: dict[str, Any] = field(repr=False)
    """What must be in them; others may be added."""
    use_ssl: dict[str, Any] | None
    """None: no TLS."""


def celery_broker(url: str) -> CeleryBroker:
    """Raises ConfigurationError for a faulty URL."""
    address = RedisUrl.parse(url)
    login = _login(address)
    use_ssl = _tls_options(address) or None
    if address.socket is not None:
        # kombu's own form: what stands in the query becomes an argument of the connection.
        return CeleryBroker(
            f"redis+socket://{login}{quote(address.socket)}?virtual_host={address.database}", {}, None
        )
    if address.service is None:
        (server,) = address.nodes
        scheme = "rediss" if address.tls else "redis"
        return CeleryBroker(f"{scheme}://{login}{_host_and_port(server)}/{address.database}", {}, use_ssl)
    # Each with the login: kombu goes on to the next of them when it has lost the connection, and takes it from there.
    sentinels = [f"sentinel://{login}{_host_and_port(node)}/{address.database}" for node in address.nodes]
    options = {"master_name": address.service, "sentinel_kwargs": _sentinel_options(address)}
    return CeleryBroker(";".join(sentinels), options, use_ssl)


def _client_of_primary(address: RedisUrl, options: dict[str, Any], sentinels: Any, pool: Any) -> Any:
    """The classes are Any because redis-py's have no types."""
    found = sentinels(address.nodes, sentinel_kwargs=_sentinel_options(address))
    return found.master_for(address.service, connection_pool_class=pool, **options)


def _server_options(address: RedisUrl, answer_seconds: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "db": address.database,
        "username": address.username,
        "password": address.password,
        "decode_responses": True,
        "socket_timeout": answer_seconds,
        "socket_connect_timeout": CONNECT_SECONDS,
        **_tls_options(address),
    }
    if address.tls:
        options["ssl"] = True
    if address.socket is not None:
        options["unix_socket_path"] = address.socket
    elif address.service is None:
        ((options["host"], options["port"]),) = address.nodes
    return options


def _sentinel_options(address: RedisUrl) -> dict[str, Any]:
    """For the connections to the Sentinels themselves; shared by redis-py, kombu and Flower."""
    options: dict[str, Any] = {
        "socket_timeout": SENTINEL_SECONDS,
        "socket_connect_timeout": SENTINEL_SECONDS,
        # None: a Sentinel that does not answer is not asked again, the next one is. (Left out, redis-py would wait
        # for seconds between ten tries, in Celery's event loop as well.)
        "retry": None,
        **_tls_options(address),
    }
    if address.tls:
        options["ssl"] = True
    if address.sentinel_password is not None:
        options["password"] = address.sentinel_password
    return options


def _tls_options(address: RedisUrl) -> dict[str, Any]:
    if not address.tls:
        return {}
    options: dict[str, Any] = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    if address.ca_file is not None:
        options["ssl_ca_certs"] = address.ca_file
    return options


def _login(address: RedisUrl) -> str:
    if address.password is None:
        return ""
    return f"{quote(address.username or '', safe='')}:{quote(address.password, safe='')}@"


def _host_and_port(node: tuple[str, int]) -> str:
    host, port = node
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Sentinels(Sentinel):
    """redis-py's Sentinels, without a race between threads, and with an error that says what each of them answered.

    Its own `discover_master` moves the Sentinel that answered to the front by a swap of two places in the list. Two
    threads that swap at the same time, as after a failover, leave one Sentinel in it twice and lose another for good.
    """

    def discover_master(self, service_name: str) -> tuple[str, int]:
        errors: list[redis.RedisError] = []
        known: list[Any] = self.sentinels
        for sentinel in known:
            try:
                state = sentinel.sentinel_masters().get(service_name)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                errors.append(error)
                continue
            if state and _is_up(state):
                self.sentinels = _first(sentinel, known)
                return state["ip"], state["port"]
        raise MasterNotFoundError(_unknown(service_name, errors)) from (errors[-1] if errors else None)


class _AsyncSentinels(AsyncSentinel):
    """The same for asyncio, where tasks meet in the same way."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        errors: list[redis.RedisError] = []
        known: list[Any] = self.sentinels
        for sentinel in known:
            try:
                state = (await sentinel.sentinel_masters()).get(service_name)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                errors.append(error)
                continue
            if state and _is_up(state):
                self.sentinels = _first(sentinel, known)
                return state["ip"], state["port"]
        raise AsyncMasterNotFoundError(_unknown(service_name, errors)) from (errors[-1] if errors else None)


def _is_up(state: Mapping[str, Any]) -> bool:
    """What a Sentinel says of the primary: nobody, itself included, thinks that it is down."""
    return bool(state["is_master"] and not state["is_sdown"] and not state["is_odown"])


def _first(sentinel: Any, known: list[Any]) -> list[Any]:
    """A new list in which the next search begins with this one."""
    return [sentinel, *(other for other in known if other is not sentinel)]


def _unknown(service: str, errors: list[redis.RedisError]) -> str:
    answers = "".join(f"; {error}" for error in errors)
    return (
        f"no Sentinel names a primary {service!r} that is up{answers} (a failover takes some seconds; if it lasts, "
        "check the Sentinels' hosts and the primary's name in TANDEM_REDIS_URL)"
    )


class _PrimaryPool(SentinelConnectionPool):
    """Connections to the primary; closing them closes those to the Sentinels, which redis-py leaves open."""

    def close(self) -> None:
        super().close()
        self.sentinel_manager.close()


class _AsyncPrimaryPool(AsyncSentinelConnectionPool):
    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()
