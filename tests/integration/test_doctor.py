"""`tandem doctor` finds what is wrong, says what to do, and lets a script know."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tandem import diagnosis
from tandem.home import Home, RunningService
from tandem.ports import LOOPBACK, PortWish
from tandem.settings import Settings
from tests.valkey_server import free_port

DOCTOR_SECONDS = 200.0
"""It imports torch, which takes long on a busy machine."""


def doctor(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, "-m", "tandem.cli", "doctor", "--home", str(home)),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=DOCTOR_SECONDS,
    )


def test_a_missing_model_fails_with_its_fix_and_the_rest_is_looked_at_too(tmp_path: Path) -> None:
    """Exit code 1, and one line for each check where there is no terminal."""
    done = doctor(tmp_path / "home", TANDEM_MODELS_DIR=str(tmp_path / "none"))
    assert done.returncode == 1, done.stderr
    lines = {line.split(":")[0]: line for line in done.stdout.splitlines()}
    assert "make install" in lines["fail  models"]
    assert "append-only file on" in lines["ok    Valkey"]
    assert "ok    torch" in lines
    assert "ok    packages" in lines
    assert not (tmp_path / "home").exists()


def test_a_broken_catalogue_is_found(tmp_path: Path) -> None:
    catalogue = tmp_path / "models.toml"
    catalogue.write_text("[[models]]\nname = 'both'\ntasks = ['fill-mask']\n")
    finding = diagnosis.models(Settings(catalogue=catalogue))
    assert finding.status == "fail"
    assert "both" in finding.found


def test_spinning_threads_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert diagnosis.spinning().status == "warn"
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert diagnosis.spinning().status == "ok"


def test_a_full_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the nearest folder that exists: a home that is still to be made has no disk of its own."""
    assert diagnosis.disk(tmp_path / "not" / "yet").status == "ok"
    monkeypatch.setattr(diagnosis, "DISK_FAIL_BYTES", 2**70)
    assert diagnosis.disk(tmp_path / "not" / "yet").status == "fail"


def test_a_service_that_does_not_answer_fails(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert diagnosis.service(home).status == "ok"
    home.announce(service_at(free_port()))
    assert diagnosis.service(home).status == "fail"


def test_a_port_in_use_is_a_warning_unless_the_service_uses_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with socket.create_server((LOOPBACK, 0)) as taken:
        wish = PortWish("--port", LOOPBACK, taken.getsockname()[1])
        finding = diagnosis.port(home, wish)
        assert (finding.status, "--port" in finding.fix) == ("warn", True)
        home.announce(service_at(wish.port))
        assert diagnosis.port(home, wish).status == "ok"
    home.withdraw()
    assert diagnosis.port(home, wish).status == "ok"


def service_at(port: int) -> RunningService:
    return RunningService(
        supervisor=os.getpid(),
        api_url=f"http://{LOOPBACK}:{port}",
        api_key="key",
        redis_url=f"redis://{LOOPBACK}:1/0",
        flower_url=None,
        flower_password=None,
        pids={},
    )
