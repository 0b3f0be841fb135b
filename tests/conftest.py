"""What every group of tests shares: one real Valkey server a session, emptied before each test that uses it."""

import gc
from collections.abc import Iterator

import hypothesis
import pytest
from xdist.remote import Producer

from tests.distribution import UnitScheduling
from tests.valkey_server import ValkeyServer

# No limit of time for an example, which a busy machine breaks; and the same examples in each run, so that a test that
# fails is about what was changed.
hypothesis.settings.register_profile(
    "tandem", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tandem")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> UnitScheduling:
    return UnitScheduling(config, log)


def pytest_collection_finish() -> None:
    """Spare the garbage collector the half a million objects that imports have made and that stay: whoever calls it,
    as each training does at its end, waits 0.3 s for them otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[ValkeyServer]:
    """The session's server, as the last test left it: use `valkey_url`, which empties it first."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def valkey_url(shared_valkey: ValkeyServer) -> str:
    """The URL of an empty Valkey server, which the test must leave running."""
    shared_valkey.flush()
    return shared_valkey.url


@pytest.fixture
def own_valkey() -> Iterator[ValkeyServer]:
    """A server of the test's own, to pause, kill and restart."""
    with ValkeyServer() as server:
        yield server
