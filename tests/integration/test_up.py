"""`tandem up` as a user runs it: real processes, and none left whatever ends it."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from tandem import PromptTooLong, Tandem
from tandem.embedded import UpOptions
from tandem.embedded_service import EmbeddedService, ServiceFailed

PATIENCE_SECONDS = 120.0
"""For a process that imports torch on a busy machine."""
POLL_SECONDS = 0.02


def options(home: Path) -> UpOptions:
    return UpOptions(home=home, port=0, flower_port=0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    """One service for the tests that leave it running."""
    with EmbeddedService.start(options(tmp_path_factory.mktemp("up") / "home")) as service:
        yield service


def up(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `tandem up` where it must refuse to start."""
    return subprocess.run(
        (sys.executable, "-m", "tandem.cli", "up", "--home", str(home), *arguments),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_SECONDS:g} s"
        time.sleep(POLL_SECONDS)


def left_over(pids: dict[str, int]) -> list[str]:
    """Processes of a service, and of their groups, that still run. Orphaned zombies wait for init and run nothing."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, group = text.rsplit(")", 1)[1].split()[:3]
        if state != "Z" and int(group) in pids.values():
            found.append(text)
    return found


class TestARunningService:
    def test_every_part_answers(self, service: EmbeddedService) -> None:
        assert httpx.get(f"{service.api_url}/readyz", trust_env=False).status_code == 200
        assert service.flower_url is not None
        assert httpx.get(f"{service.flower_url}/healthcheck", trust_env=False).status_code == 200
        assert sorted(service.running.pids) == ["api", "flower", "valkey", "worker-1"]

    def test_the_key_opens_the_api(self, service: EmbeddedService) -> None:
        url = f"{service.api_url}/v1/models"
        assert httpx.get(url, trust_env=False).status_code == 401
        headers = {"Authorization": f"Bearer {service.api_key}"}
        assert httpx.get(url, headers=headers, trust_env=False).status_code == 200

    def test_flower_shows_a_job_and_how_it_ended(self, service: EmbeddedService) -> None:
        """The task's id is the job's, its arguments are task and model alone, and a failed job is a failed task."""
        with Tandem(service.api_url, service.api_key) as client:
            good = client.submit("feature-extraction", "a secret text", model="all-minilm-l6-v2")
            bad = client.submit("feature-extraction", "word " * 2000, model="all-minilm-l6-v2")
            good.wait(timeout=PATIENCE_SECONDS)
            with pytest.raises(PromptTooLong):
                bad.wait(timeout=PATIENCE_SECONDS)
        auth = ("tandem", service.running.flower_password or "")

        def task(job_id: str) -> dict[str, object]:
            answer = httpx.get(f"{service.flower_url}/api/task/info/{job_id}", auth=auth, trust_env=False)
            return dict(answer.json()) if answer.is_success else {}

        wait_until(lambda: task(good.id).get("state") == "SUCCESS", "the job in Flower")
        wait_until(lambda: task(bad.id).get("state") == "FAILURE", "the failed job in Flower")
        assert task(good.id)["args"] == "('feature-extraction', 'all-minilm-l6-v2')"
        assert "context_length_exceeded" in str(task(bad.id)["exception"])

    def test_the_queue_keeps_what_it_acknowledges(self, service: EmbeddedService) -> None:
        """The append-only file is on, a full server refuses instead of forgetting, and it wants a password."""
        with redis.Redis.from_url(service.redis_url, decode_responses=True) as client:
            wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
            assert {name: client.config_get(name)[name] for name in wanted} == wanted
        with (
            redis.Redis.from_url(re.sub(r"//.*@", "//", service.redis_url)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()

    def test_secrets_are_their_owners_alone(self, service: EmbeddedService) -> None:
        folder = service.home.path
        for name in ("api-key", "valkey-password", "flower-password", "service.json", "valkey/valkey.conf"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
        secrets = (
            service.api_key,
            service.running.flower_password or "",
            service.redis_url.split("@")[0].split(":")[-1],
        )
        for name, pid in service.running.pids.items():
            line = Path(f"/proc/{pid}/cmdline").read_text()
            assert not any(secret in line for secret in secrets), name

    def test_what_it_printed_can_be_copied(self, service: EmbeddedService) -> None:
        """Without a terminal there is no frame, and no line is broken."""
        lines = (service.home.logs / "up.log").read_text().splitlines()
        assert f"curl {service.api_url}/v1/chat/completions \\" in lines
        assert f"  -H 'Authorization: Bearer {service.api_key}' \\" in lines
        assert any(line.endswith(f" {service.api_url}/docs") for line in lines)
        assert any(line.endswith(f" {service.flower_url}") for line in lines)

    def test_a_second_service_cannot_have_the_same_home(self, service: EmbeddedService) -> None:
        refused = up(service.home.path, "--port", "0", "--flower-port", "0")
        assert refused.returncode == 2
        assert f"process {service.supervisor_pid}" in refused.stderr
        assert "--home" in refused.stderr
        assert httpx.get(f"{service.api_url}/readyz", trust_env=False).status_code == 200

    def test_a_killed_worker_is_back(self, service: EmbeddedService) -> None:
        first = service.pid_of("worker-1")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: service.running.pids.get("worker-1", first) != first, "a new worker")
        assert "worker-1 was killed by SIGKILL" in (service.home.logs / "up.log").read_text()

    def test_a_killed_queue_is_back_with_its_data(self, service: EmbeddedService) -> None:
        first = service.pid_of("valkey")
        with redis.Redis.from_url(service.redis_url, decode_responses=True) as client:
            client.set("kept", "yes")
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: service.running.pids.get("valkey", first) != first, "a new server")
            wait_until(lambda: answer(client, "kept") == "yes", "the data")
        wait_until(lambda: ready(service), "an API that has found the new server")


def answer(client: "redis.Redis", key: str) -> object:
    try:
        return client.get(key)
    except redis.ConnectionError:
        return None


def ready(service: EmbeddedService) -> bool:
    return httpx.get(f"{service.api_url}/readyz", trust_env=False).status_code == 200


class TestRefusals:
    """What is wrong is said before anything is started, with exit code 2."""

    @pytest.mark.parametrize("option", ["--port", "--flower-port"])
    def test_a_port_in_use(self, tmp_path: Path, option: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            other = {"--port": "--flower-port", "--flower-port": "--port"}[option]
            refused = up(tmp_path, option, port, other, "0")
        assert refused.returncode == 2
        assert f"port {port} " in refused.stderr
        assert f"`{option}`" in refused.stderr
        assert list((tmp_path / "logs").iterdir()) == []

    def test_missing_models(self, tmp_path: Path) -> None:
        refused = up(tmp_path, "--port", "0", "--flower-port", "0", TANDEM_MODELS_DIR=str(tmp_path / "none"))
        assert refused.returncode == 2
        assert "make install" in refused.stderr
        assert "smollm2-135m-instruct" in refused.stderr

    def test_a_bad_setting(self, tmp_path: Path) -> None:
        refused = up(tmp_path, TANDEM_LEASE_SECONDS="soon")
        assert refused.returncode == 2
        assert "TANDEM_LEASE_SECONDS" in refused.stderr

    def test_a_queue_of_ones_own(self, tmp_path: Path) -> None:
        """It would be ignored, and the jobs sent there would wait for ever."""
        refused = up(tmp_path, TANDEM_REDIS_URL="redis://elsewhere:6379/0")
        assert refused.returncode == 2
        assert "TANDEM_REDIS_URL" in refused.stderr

    def test_an_address_of_another_machine(self, tmp_path: Path) -> None:
        refused = up(tmp_path, "--host", "192.0.2.1", "--port", "0", "--flower-port", "0")
        assert refused.returncode == 2
        assert "--host" in refused.stderr

    def test_a_library_user_is_told_what_up_said(self, tmp_path: Path) -> None:
        with pytest.raises(ServiceFailed, match="make install"):
            EmbeddedService.start(options(tmp_path), environment={"TANDEM_MODELS_DIR": str(tmp_path / "none")})


class TestTheEnd:
    def test_ctrl_c_leaves_no_process_and_a_killed_supervisor_neither(self, service: EmbeddedService) -> None:
        """And what was kept in the home is there when a service is started in it again.

        The last test of this file, since it ends the service that the others use: a start takes many seconds.
        """
        home, pids, key = service.home, service.running.pids, service.api_key
        with redis.Redis.from_url(service.redis_url) as client:
            client.set("kept over a restart", "yes")
        os.kill(service.supervisor_pid, signal.SIGINT)
        assert service.wait_for_end(PATIENCE_SECONDS) == 0
        assert left_over(pids) == []
        assert home.running() is None

        with EmbeddedService.start(options(home.path)) as again:
            pids = again.running.pids
            assert again.api_key == key
            with redis.Redis.from_url(again.redis_url, decode_responses=True) as client:
                assert client.get("kept over a restart") == "yes"
            os.kill(again.supervisor_pid, signal.SIGKILL)
            wait_until(lambda: left_over(pids) == [], "the end of every process")
        assert home.running() is None
        assert (home.logs / "worker-1.log.1").exists()
