"""The URL in TANDEM_REDIS_URL, taken apart and checked. redis_connection.py tells its forms and connects by it.

It holds a password, so that no error here repeats any part of it; `redacted` makes one that may be logged.
"""

import re
import ssl
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from tandem.errors import ConfigurationError

VARIABLE = "TANDEM_REDIS_URL"
REDIS_PORT = 6379
SENTINEL_PORT = 26379
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")

Node = tuple[str, int]
"""Host and port."""


@dataclass(frozen=True, slots=True)
class RedisUrl:
    nodes: tuple[Node, ...]
    """The server; with `service`, the Sentinels; empty with `socket`."""
    service: str | None
    """The name by which the Sentinels know the primary; None without Sentinels."""
    socket: str | None
    """The path of a Unix socket."""
    database: int
    username: str | None
    password: str | None = field(repr=False)
    sentinel_password: str | None = field(repr=False)
    tls: bool
    ca_file: str | None
    """The file of the CA that signed the server's certificate; None: those that the system trusts."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ConfigurationError naming TANDEM_REDIS_URL, the fault and the fix, and no part of the URL."""
        scheme, found, rest = url.partition("://")
        if not found or scheme not in SCHEMES:
            raise _fault(
                "has no scheme that is known", f"begin it with one of {', '.join(f'{s}://' for s in SCHEMES)}"
            )
        authority, path, query = _split(rest)
        login, _, hosts = authority.rpartition("@")
        username, password = _login(login)
        sentinels, tls = scheme.endswith("+sentinel"), scheme.startswith("rediss")
        options = _options(query, scheme)
        service, database = _service(path) if sentinels else (None, path.removeprefix("/"))
        if scheme == "unix":
            if hosts or len(path) < 2:
                raise _fault("names no absolute path of a socket", "write unix:///path/to.sock, with three slashes")
            nodes: tuple[Node, ...] = ()
            database = options.get("db", "")
        else:
            nodes = tuple(_node(host, SENTINEL_PORT if sentinels else REDIS_PORT) for host in hosts.split(","))
            if len(nodes) > 1 and not sentinels:
                raise _fault("names several servers", "name one, or their Sentinels by redis+sentinel://")
        return cls(
            nodes=nodes,
            service=service,
            socket=unquote(path) if scheme == "unix" else None,
            database=_database(database),
            username=username,
            password=password,
            sentinel_password=options.get("sentinel_password"),
            tls=tls,
            ca_file=_ca_file(options.get("ssl_ca_certs")),
        )


def redacted(url: str) -> str:
    """The URL as it may be logged: every password in it is `***`. Of a faulty one, the scheme alone is left."""
    scheme, _, rest = url.partition("://")
    try:
        RedisUrl.parse(url)
    except ConfigurationError:
        return f"{scheme}://***" if scheme in SCHEMES else "***"
    authority, path, query = _split(rest)
    login, at, hosts = authority.rpartition("@")
    shown = f"{login.partition(':')[0]}:***@{hosts}" if at else hosts
    options = re.sub("(password=)[^&]*", r"\1***", query)
    return f"{scheme}://{shown}{path}" + (f"?{options}" if options else "")


def _fault(fault: str, fix: str) -> ConfigurationError:
    return ConfigurationError(f"{VARIABLE} {fault}: {fix}", param=VARIABLE)


def _split(rest: str) -> tuple[str, str, str]:
    """What stands behind the scheme: login and hosts, path, query."""
    try:
        parts = urlsplit(f"//{rest}")
    except ValueError:
        # Its message repeats the host, which may be a password.
        raise _fault("has a host that cannot be read", "write an IPv6 address as [::1]") from None
    if parts.fragment or "#" in rest or ("@" not in parts.netloc and "@" in rest):
        raise _fault(
            "has a / ? # or @ in its password", "write such a character percent-encoded: %2F, %3F, %23 or %40"
        )
    return parts.netloc, parts.path, parts.query


def _login(login: str) -> tuple[str | None, str | None]:
    name, colon, password = login.partition(":")
    if login and not (colon and password):
        raise _fault("has a user without a password", "write user:password@, or :password@ for the default user")
    return unquote(name) or None, unquote(password) or None


def _node(text: str, default_port: int) -> Node:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        # Its message repeats what it could not read, which may be a password.
        raise _fault("has a port that is no number up to 65535", "write host:6379") from None
    if not host:
        raise _fault("names no host", "write host:6379 behind the login")
    return unquote(host), default_port if port is None else port


def _service(path: str) -> tuple[str, str]:
    service, _, database = path.removeprefix("/").partition("/")
    if not service:
        raise _fault(
            "does not say by what name the Sentinels know the primary", "write it behind their hosts: /mymaster/0"
        )
    return unquote(service), database


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise _fault("has a database that is no number", "end it with /0, or leave that out (unix://: ?db=0)")
    return int(text or 0)


def _options(query: str, scheme: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = {
        "redis": (),
        "rediss": ("ssl_ca_certs",),
        "unix": ("db",),
        "redis+sentinel": ("sentinel_password",),
        "rediss+sentinel": ("sentinel_password", "ssl_ca_certs"),
    }[scheme]
    if "ssl_cert_reqs" in options or "ssl_check_hostname" in options:
        raise _fault(
            "asks to leave the server's certificate unchecked, or says that it is checked",
            "leave ssl_cert_reqs and ssl_check_hostname out: it always is; name your own CA in ssl_ca_certs",
        )
    if set(options) - set(known):
        takes = f"takes {' and '.join(known)}" if known else "takes none"
        raise _fault("has an option that is not known", f"{scheme}:// {takes}")
    return options


def _ca_file(path: str | None) -> str | None:
    if path is not None:
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            raise _fault(
                f"names a file of certificates, in ssl_ca_certs, that cannot be used ({error.strerror or error})",
                "give the path of a PEM file, as this process sees it",
            ) from error
    return path
