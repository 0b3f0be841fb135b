"""`tandem up --ephemeral`: a queue that keeps nothing, on purpose."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tandem import embedded_valkey
from tandem.errors import ConfigurationError
from tests.valkey_server import free_port

START_SECONDS = 60.0
POLL_SECONDS = 0.02
PASSWORD = "of-this-test"


@contextmanager
def server(folder: Path, *, ephemeral: bool) -> Iterator[redis.Redis]:
    port = free_port()
    configuration = embedded_valkey.configure(folder, port=port, password=PASSWORD, ephemeral=ephemeral)
    process = subprocess.Popen([embedded_valkey.binary(), configuration], stdout=subprocess.DEVNULL)
    url = embedded_valkey.url(port=port, password=PASSWORD)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not embedded_valkey.answers(url):
            assert time.monotonic() < deadline
            time.sleep(POLL_SECONDS)
        with redis.Redis.from_url(url, decode_responses=True) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def test_an_ephemeral_server_keeps_nothing(tmp_path: Path) -> None:
    with server(tmp_path, ephemeral=True) as client:
        client.set("a job", "here")
        assert client.info("persistence")["aof_enabled"] == 0
    with server(tmp_path, ephemeral=True) as client:
        assert client.get("a job") is None


def test_it_does_not_start_over_jobs_that_were_kept(tmp_path: Path) -> None:
    """It would not see them, and they would come back at the next start without the option."""
    with server(tmp_path, ephemeral=False) as client:
        client.set("a job", "here")
    with pytest.raises(ConfigurationError, match="`--home`"):
        embedded_valkey.configure(tmp_path, port=1, password=PASSWORD, ephemeral=True)
    with server(tmp_path, ephemeral=False) as client:
        assert client.get("a job") == "here"
