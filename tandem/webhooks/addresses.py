"""Which IP addresses a webhook may go to: a user's URL must not reach the inside of the operator's network.

The tables follow IANA's special-purpose address registries (RFC 6890 and its updates). They are spelled out, because
what `ipaddress.is_global` answers changed between patch releases of Python 3.11; it is asked besides.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Reach = Literal["public", "private", "forbidden"]


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


PRIVATE = _networks("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
"""Loopback and an operator's own networks: allowed where the operator says so."""

PLATFORM = _networks(
    "168.63.129.16/32",  # Azure
    "100.100.100.200/32",  # Alibaba Cloud
    "192.0.0.192/32",  # Oracle Cloud
    "fd00:ec2::254/128",  # AWS; its IPv4 address, 169.254.169.254, is link-local
    "fd20:ce::254/128",  # Google Cloud
)
"""Where cloud platforms hand credentials to their virtual machines. Never allowed, though Azure's is no special
address and two others lie in private networks."""

SPECIAL = _networks(
    "0.0.0.0/8",  # this host
    "100.64.0.0/10",  # shared by a carrier's customers (RFC 6598)
    "169.254.0.0/16",  # link-local
    "192.0.0.0/24",  # protocol assignments
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, broadcast
    "2001::/23",  # protocol assignments, Teredo among them
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4: carries an IPv4 address to an unknown relay
    "3fff::/20",  # documentation
)

UNICAST = IPv6Network("2000::/3")
"""All that IANA gives out as global IPv6 unicast; whatever lies outside is local, multicast, reserved or mapped."""
NAT64 = IPv6Network("64:ff9b::/96")
"""An IPv6-only network's way to an IPv4 address, which stands in the last 32 bits (RFC 6052)."""


@dataclass(frozen=True, slots=True)
class AddressRules:
    """Where the operator lets webhooks go."""

    allow_private: bool = False
    """Also to loopback and private networks, and over plain http: for development and networks of one's own."""

    def allow(self, address: Address) -> bool:
        reach = reach_of(address)
        return reach == "public" or (reach == "private" and self.allow_private)


def reach_of(address: Address) -> Reach:
    """Who can be behind an address; an IPv4 address that is wrapped into an IPv6 one counts as itself."""
    address = _unwrapped(address)
    if _lies_in(address, PLATFORM):
        return "forbidden"
    if _lies_in(address, PRIVATE):
        return "private"
    if _lies_in(address, SPECIAL) or not address.is_global:
        return "forbidden"
    if address.version == 6 and address not in UNICAST:
        return "forbidden"
    return "public"


def _unwrapped(address: Address) -> Address:
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in NAT64:
        return ip_address(int(address) & 0xFFFF_FFFF)
    return address


def _lies_in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
