"""Which addresses a webhook may go to."""

from ipaddress import ip_address

import pytest

from tandem.webhooks.addresses import AddressRules, Reach, reach_of

PUBLIC = ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "2606:4700::1111"]
PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "::1",
    "fd12::1",
]
FORBIDDEN = [
    "0.0.0.0",  # noqa: S104  # judged, not bound
    "0.1.2.3",
    "100.64.0.1",
    "100.127.255.255",
    "169.254.169.254",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::7f00:1",
    "100::1",
    "64:ff9b:1::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
WRAPPED: list[tuple[str, Reach]] = [
    ("::ffff:127.0.0.1", "private"),
    ("::ffff:10.1.2.3", "private"),
    ("::ffff:169.254.169.254", "forbidden"),
    ("::ffff:8.8.8.8", "public"),
    ("64:ff9b::7f00:1", "private"),
    ("64:ff9b::a9fe:a9fe", "forbidden"),
    ("64:ff9b::808:808", "public"),
]
PLATFORM = ["168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254", "169.254.169.254"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_always_allowed(address: str) -> None:
    assert AddressRules(allow_private=False).allow(ip_address(address))
    assert AddressRules(allow_private=True).allow(ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_allowed_only_if_the_operator_says_so(address: str) -> None:
    assert not AddressRules(allow_private=False).allow(ip_address(address))
    assert AddressRules(allow_private=True).allow(ip_address(address))


@pytest.mark.parametrize("address", FORBIDDEN)
def test_special_addresses_are_never_allowed(address: str) -> None:
    assert not AddressRules(allow_private=False).allow(ip_address(address))
    assert not AddressRules(allow_private=True).allow(ip_address(address))


@pytest.mark.parametrize(("address", "reach"), WRAPPED)
def test_an_ipv4_address_inside_an_ipv6_one_counts_as_itself(address: str, reach: Reach) -> None:
    assert reach_of(ip_address(address)) == reach


@pytest.mark.parametrize("address", PLATFORM)
def test_where_clouds_hand_out_credentials_is_never_allowed(address: str) -> None:
    assert not AddressRules(allow_private=True).allow(ip_address(address))
