"""The home of an embedded service: secrets, logs, the lock, and the record of where it runs."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.errors import ConfigurationError
from tandem.home import Home, RunningService


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def running_service(supervisor: int) -> RunningService:
    return RunningService(
        supervisor=supervisor,
        api_url="http://127.0.0.1:8000",
        api_key="key",
        redis_url="redis://:password@127.0.0.1:6379/0",
        flower_url=None,
        flower_password=None,
        pids={"api": 1},
    )


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_secret_is_made_once_for_its_owner_alone(home: Home) -> None:
    first = home.secret("api-key", prefix="tandem-")
    assert first.startswith("tandem-")
    assert len(first) > 40
    assert home.secret("api-key", prefix="tandem-") == first
    assert stat.S_IMODE((home.path / "api-key").stat().st_mode) == 0o600


def test_a_given_secret_takes_the_place_of_a_made_one(home: Home) -> None:
    home.secret("api-key")
    home.keep_secret("api-key", "my-own")
    assert home.secret("api-key") == "my-own"


def test_an_empty_secret_is_refused(home: Home) -> None:
    """An empty password would open the server to everybody."""
    (home.path / "valkey-password").write_text("\n")
    with pytest.raises(ConfigurationError, match="valkey-password is empty"):
        home.secret("valkey-password")


def test_logs_of_the_last_runs_are_kept(home: Home) -> None:
    for run in ("first", "second", "third", "fourth"):
        home.new_log("worker-1").write_text(run)
    logs = {path.name: path.read_text() for path in home.logs.iterdir()}
    assert logs == {"worker-1.log": "fourth", "worker-1.log.1": "third", "worker-1.log.2": "second"}


def test_only_one_holds_a_home(home: Home) -> None:
    with home.locked(), pytest.raises(ConfigurationError, match=f"process {os.getpid()}"), Home(home.path).locked():
        pytest.fail("two hold one home")
    # Free again after its holder has let go, and named after the next.
    with home.locked():
        assert (home.path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_running_service_is_found(home: Home) -> None:
    assert home.running() is None
    home.announce(running_service(os.getpid()))
    assert home.running() == running_service(os.getpid())
    home.withdraw()
    assert home.running() is None


def test_what_a_killed_service_leaves_behind_is_no_running_service(home: Home) -> None:
    home.announce(running_service(ended_process()))
    assert home.running() is None


def test_a_broken_record_is_named(home: Home) -> None:
    (home.path / "service.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"service\.json cannot be read"):
        home.running()


def test_a_new_home_keeps_itself_out_of_git(home: Home) -> None:
    assert (home.path / ".gitignore").read_text() == "*\n"


def test_a_folder_that_was_there_keeps_its_own_rules(tmp_path: Path) -> None:
    """`--home .` must not hide a project from git."""
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    Home(tmp_path).create()
    assert (tmp_path / ".gitignore").read_text() == "*.pyc\n"


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--home"):
        Home(tmp_path / "file" / "home").create()
