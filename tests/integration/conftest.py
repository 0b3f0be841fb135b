"""One whole service (queue, API, worker) for the tests of client, command line and examples."""

from collections.abc import Iterator

import pytest

from tandem import Tandem
from tandem.embedded import UpOptions
from tandem.embedded_service import EmbeddedService


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    """Runs on free ports, with the real models; tests leave it running and tell their jobs apart by id."""
    home = tmp_path_factory.mktemp("service") / "home"
    with EmbeddedService.start(UpOptions(home=home, port=0, flower=False)) as service:
        yield service


@pytest.fixture(scope="session")
def service_environment(service: EmbeddedService) -> dict[str, str]:
    """What a program needs to find it."""
    return {"TANDEM_URL": service.api_url, "TANDEM_API_KEY": service.api_key}


@pytest.fixture
def client(service: EmbeddedService) -> Iterator[Tandem]:
    with Tandem(service.api_url, service.api_key) as client:
        yield client
