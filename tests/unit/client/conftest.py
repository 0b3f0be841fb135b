from collections.abc import Iterator

import pytest

from tandem import Tandem
from tests.unit.client.stand_in_server import StandInServer, stand_in_server


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with stand_in_server() as server:
        yield server


@pytest.fixture
def client(server: StandInServer) -> Iterator[Tandem]:
    with Tandem(server.url, "a-key", timeout=5.0) as client:
        yield client
