"""One API for all tests of this folder; each test begins with an empty queue server."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from tandem.services import Services
from tandem.settings import ApiSettings
from tests.integration.api.api_server import client_of, sdk_of, serving, settings_for
from tests.integration.api.stand_in_worker import StandInWorker
from tests.valkey_server import ValkeyServer

# A queue of this folder's own: an API process drives the batches and delivers the webhooks of whatever queue it
# serves, also those that the tests of other folders put into the session's shared one.


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def valkey_url(valkey: ValkeyServer) -> str:
    valkey.flush()
    return valkey.url


@pytest.fixture(scope="session")
def api_settings(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> ApiSettings:
    return settings_for(valkey.url, tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="session")
def api_server(api_settings: ApiSettings) -> Iterator[str]:
    with serving(api_settings) as url:
        yield url


@pytest.fixture
def api_url(api_server: str, valkey_url: str) -> str:
    """The API's root, with nothing in its queue."""
    return api_server


@pytest.fixture
def client(api_url: str) -> Iterator[httpx.Client]:
    with client_of(api_url) as client:
        yield client


@pytest.fixture
def sdk(api_url: str) -> Iterator[openai.OpenAI]:
    with sdk_of(api_url) as sdk:
        yield sdk


@pytest.fixture
def worker(api_settings: ApiSettings, valkey_url: str) -> Iterator[StandInWorker]:
    worker = StandInWorker(api_settings)
    yield worker
    worker.jobs.close()


@pytest.fixture
def services(api_settings: ApiSettings, valkey_url: str) -> Iterator[Services]:
    """The same stores as the API's, for what the API alone cannot make (adapters)."""
    services = Services.connect(api_settings)
    yield services
    services.jobs.close()
