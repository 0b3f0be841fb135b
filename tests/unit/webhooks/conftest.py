"""An authority of the tests' own, and receivers with its certificates."""

import base64
import ssl
from collections.abc import Iterator

import pytest
import trustme

from tandem.webhooks.signature import Signer
from tests.unit.webhooks.receiver import Receiver, serving

NAME = "receiver.example"


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def trust(authority: trustme.CA) -> ssl.SSLContext:
    """What a sender trusts: the tests' authority and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Plain HTTP."""
    with serving() as receiver:
        yield receiver


@pytest.fixture
def secure_receiver(authority: trustme.CA) -> Iterator[Receiver]:
    """HTTPS, with a certificate for `receiver.example`."""
    with serving(tls_of(authority, NAME)) as receiver:
        yield receiver


@pytest.fixture(scope="session")
def secret() -> str:
    return "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def signer(secret: str) -> Signer:
    return Signer.of_setting(secret)


def tls_of(authority: trustme.CA, name: str) -> ssl.SSLContext:
    """A server's side of TLS with a certificate for a name or an address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context
