"""One nursery for all chaos tests: its imports are paid once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.nursery import LIGHT, Nursery
from tests.chaos.stage import Stage
from tests.valkey_server import ValkeyServer


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery(*LIGHT) as nursery:
        yield nursery


@pytest.fixture
def stage(nursery: Nursery, valkey_url: str, tmp_path: Path) -> Iterator[Stage]:
    """Over the session's server, which the test must leave running."""
    with Stage(nursery, valkey_url, tmp_path) as stage:
        yield stage


@pytest.fixture
def own_stage(nursery: Nursery, own_valkey: ValkeyServer, tmp_path: Path) -> Iterator[Stage]:
    """Over a server of the test's own (`own_valkey`), to freeze, fill and kill."""
    with Stage(nursery, own_valkey.url, tmp_path) as stage:
        yield stage
