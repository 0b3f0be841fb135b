"""Where a webhook goes: its URL, checked without a look-up at submission, and its host's addresses at delivery."""

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

import httpx

from tandem.errors import InvalidRequest
from tandem.webhooks.addresses import Address, AddressRules

PARAM = "webhook.url"
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?")
"""A name in the form in which it is looked up; other alphabets come as punycode."""
MAX_PORT = 65_535
DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL that may be asked for, taken apart once: what was checked is what is connected to."""

    url: httpx.URL
    host: str
    """In lower case, other alphabets as punycode, an IPv6 address without brackets."""
    port: int


def check_url(url: str, rules: AddressRules, *, param: str = PARAM) -> None:
    """Refuse a URL that no webhook may go to. Looks nothing up: names are resolved, and judged, at delivery.

    Raises InvalidRequest naming `param`, the field in which the URL was given.
    """
    try:
        destination_of(url, rules)
    except InvalidRequest as error:
        raise InvalidRequest(f"{param}{error.message.removeprefix(PARAM)}", param=param) from error


def destination_of(url: str, rules: AddressRules) -> Destination:
    """The checked URL. Raises InvalidRequest naming `webhook.url`."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise _refused(f"is not a URL: {error}") from error
    schemes = ("https", "http") if rules.allow_private else ("https",)
    if parsed.scheme not in schemes:
        raise _refused(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if parsed.userinfo:
        raise _refused(
            "must not hold a user name or a password; the receiver knows who calls by the signature instead"
        )
    host = parsed.raw_host.decode("ascii")
    if not host:
        raise _refused("names no host")
    if parsed.port is not None and not 1 <= parsed.port <= MAX_PORT:
        raise _refused(f"names port {parsed.port}; leave the port out, or give one from 1 to {MAX_PORT}")
    address = _literal(host)
    if address is not None:
        _check_address(address, rules)
    elif not HOST_NAME.fullmatch(host):
        raise _refused(f"names the host {host!r}, which is no host name")
    elif _is_local_name(host) and not rules.allow_private:
        raise _refused(f"names {host!r}, which is this service's own machine")
    return Destination(parsed, host, parsed.port or DEFAULT_PORTS[parsed.scheme])


def host_of(url: str) -> str:
    """The host of a URL, by which deliveries take turns. Raises httpx.InvalidURL."""
    return httpx.URL(url).raw_host.decode("ascii")


def checked_addresses(found: Sequence[str], rules: AddressRules) -> list[Address]:
    """The addresses that a look-up gave, in its order, all of them allowed.

    One that is not allowed condemns all: a name of public and private addresses is somebody's trick, or an error.

    Raises InvalidRequest naming `webhook.url`; its text does not tell the address, so that nobody can map the
    operator's network by names.
    """
    addresses = [ip_address(text) for text in found]
    if not addresses:
        raise _refused("names a host without an address")
    for address in addresses:
        _check_address(address, rules)
    return addresses


def _check_address(address: Address, rules: AddressRules) -> None:
    if not rules.allow(address):
        wanted = "a public or private" if rules.allow_private else "a public"
        raise _refused(f"leads to an address that webhooks may not go to; use {wanted} one")


def _literal(host: str) -> Address | None:
    """The address that a host is, in any spelling that a resolver takes for one; None for a name."""
    if "%" in host:
        # An IPv6 zone names an interface of this machine.
        return None
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        # `127.1`, `0x7f000001`, `2130706433`: the C library's short forms, which getaddrinfo reads as well.
        return IPv4Address(socket.inet_aton(host.rstrip(".")))
    except OSError:
        return None


def _is_local_name(host: str) -> bool:
    name = host.rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(f"{PARAM} {reason}", param=PARAM)
