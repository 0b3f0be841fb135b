"""Which URLs are accepted at submission, and which look-ups at delivery."""

import pytest

from tandem.errors import InvalidRequest
from tandem.webhooks.addresses import AddressRules
from tandem.webhooks.destination import check_url, checked_addresses, destination_of

STRICT = AddressRules(allow_private=False)
RELAXED = AddressRules(allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com:8443/hook?token=a%20b#part",
        "HTTPS://Example.COM/x",
        "https://bücher.example/",
        "https://8.8.8.8/hook",
        "https://[2606:4700::1111]:444/hook",
    ],
)
def test_https_urls_of_public_hosts_are_accepted(url: str) -> None:
    check_url(url, STRICT)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "must begin with https://"),
        ("ftp://example.com/", "must begin with https://"),
        ("//example.com/", "must begin with https://"),
        ("example.com/hook", "must begin with https://"),
        ("", "must begin with https://"),
        ("https://user:secret@example.com/", "must not hold a user name"),
        ("https://user@example.com/", "must not hold a user name"),
        ("https://example.com\\@other.example/", "must not hold a user name"),
        ("https:///hook", "names no host"),
        ("https://example.com:0/", "names port 0"),
        ("https://example.com:65536/", "names port 65536"),
        ("https://example.com\n/", "is not a URL"),
        ("https://exa mple.com/", "is no host name"),
        ("https://a..example/", "is no host name"),
        (f"https://{'a' * 64}.example/", "is no host name"),
        (f"https://{'a.' * 130}example/", "is no host name"),
        ("https://[fe80::1%25eth0]/", "is no host name"),
        ("https://localhost/", "this service's own machine"),
        ("https://api.localhost./", "this service's own machine"),
        ("https://127.0.0.1/", "webhooks may not go to"),
        ("https://127.0.0.1./", "webhooks may not go to"),
        ("https://127.1/", "webhooks may not go to"),
        ("https://2130706433/", "webhooks may not go to"),
        ("https://0x7f000001/", "webhooks may not go to"),
        ("https://0177.0.0.1/", "is not a URL"),
        ("https://169.254.169.254/latest/meta-data", "webhooks may not go to"),
        ("https://[::1]/", "webhooks may not go to"),
        ("https://[::ffff:10.0.0.1]/", "webhooks may not go to"),
    ],
)
def test_other_urls_are_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        check_url(url, STRICT)
    assert refused.value.param == "webhook.url"


@pytest.mark.parametrize("url", ["http://localhost:9000/", "http://127.0.0.1:9000/", "https://[fd12::1]/"])
def test_development_may_use_plain_http_and_private_hosts(url: str) -> None:
    check_url(url, RELAXED)


def test_credentials_of_clouds_stay_out_of_reach_in_development_too() -> None:
    with pytest.raises(InvalidRequest, match="webhooks may not go to"):
        check_url("http://169.254.169.254/", RELAXED)


def test_host_and_port_are_those_that_will_be_connected_to() -> None:
    plain, other = (
        destination_of("https://Bücher.example/x", STRICT),
        destination_of("https://a.example:8443", STRICT),
    )
    assert (plain.host, plain.port) == ("xn--bcher-kva.example", 443)
    assert (other.host, other.port) == ("a.example", 8443)


def test_one_private_address_condemns_a_name() -> None:
    with pytest.raises(InvalidRequest, match="webhooks may not go to") as refused:
        checked_addresses(["8.8.8.8", "10.0.0.1"], STRICT)
    assert "10.0.0.1" not in refused.value.message, "the answer must not help to map the operator's network"


def test_a_name_without_addresses_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="without an address"):
        checked_addresses([], STRICT)


def test_the_order_of_the_look_up_is_kept() -> None:
    assert [str(address) for address in checked_addresses(["8.8.8.8", "2606:4700::1111", "1.1.1.1"], STRICT)] == [
        "8.8.8.8",
        "2606:4700::1111",
        "1.1.1.1",
    ]
