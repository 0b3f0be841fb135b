"""Where the client finds the service and its key."""

import os
from pathlib import Path

import pytest

from tandem import ConfigurationError
from tandem.client.endpoint import Endpoint
from tandem.home import Home, RunningService


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("TANDEM_URL", "TANDEM_API_KEY", "TANDEM_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def announce(folder: Path) -> None:
    home = Home(folder)
    home.create()
    home.announce(
        RunningService(
            supervisor=os.getpid(),
            api_url="http://127.0.0.1:8123",
            api_key="key-of-the-home",
            redis_url="redis://unused",
            flower_url=None,
            flower_password=None,
            pids={},
        )
    )


def test_the_service_that_runs_in_this_folder_is_found(empty_folder: Path) -> None:
    announce(empty_folder / ".tandem")
    assert Endpoint.find() == Endpoint("http://127.0.0.1:8123", "key-of-the-home")


def test_the_home_may_be_elsewhere(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(empty_folder / "other")
    monkeypatch.setenv("TANDEM_HOME", str(empty_folder / "other"))
    assert Endpoint.find().url == "http://127.0.0.1:8123"


def test_the_environment_comes_before_the_folder_and_arguments_before_both(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(empty_folder / ".tandem")
    monkeypatch.setenv("TANDEM_URL", "https://tandem.example/v1/")
    monkeypatch.setenv("TANDEM_API_KEY", "key-of-the-environment")
    assert Endpoint.find() == Endpoint("https://tandem.example", "key-of-the-environment")
    assert Endpoint.find("http://10.0.0.1:8000", "given") == Endpoint("http://10.0.0.1:8000", "given")


def test_the_key_of_a_running_service_is_not_sent_elsewhere(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(empty_folder / ".tandem")
    monkeypatch.setenv("TANDEM_URL", "https://tandem.example")
    with pytest.raises(ConfigurationError, match=r"no API key for https://tandem\.example: set TANDEM_API_KEY"):
        Endpoint.find()
    assert Endpoint.find("http://127.0.0.1:8123/v1").api_key == "key-of-the-home"


def test_nothing_to_be_found_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"`tandem up`.*TANDEM_URL"):
        Endpoint.find()


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'localhost:8000' is no address"):
        Endpoint.find("localhost:8000", "key")
