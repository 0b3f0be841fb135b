"""The real API over a real server, in a thread of the test's process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import uvicorn
from pydantic import SecretStr

from api.__main__ import listen
from api.app import create_app
from tandem.settings import ApiSettings

API_KEY = "test-key"
BODY_BYTES = 64 * 1024
FILE_BYTES = 1024 * 1024
WAIT_SECONDS = 30.0
"""Longer than any stand-in takes; the test of the timeout serves with its own."""
START_SECONDS = 60.0
POLL_SECONDS = 0.005
GRACE_SECONDS = 2


def settings_for(redis_url: str, artifacts: Path, *, wait_seconds: float = WAIT_SECONDS) -> ApiSettings:
    return ApiSettings(
        redis_url=redis_url,
        artifacts_url=f"file://{artifacts}",
        api_key=SecretStr(API_KEY),
        port=0,
        body_bytes=BODY_BYTES,
        file_bytes=FILE_BYTES,
        wait_seconds=wait_seconds,
        flower_url="http://127.0.0.1:5555",
    )


@contextmanager
def serving(settings: ApiSettings) -> Iterator[str]:
    """Serve until the block ends; gives the server's root URL."""
    listener = listen(settings.host, settings.port)
    config = uvicorn.Config(create_app(settings), log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="api")
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        # uvicorn only sets a flag when it has started.
        while not server.started:
            assert thread.is_alive(), "the API did not start"
            assert time.monotonic() < deadline, "the API did not start in time"
            time.sleep(POLL_SECONDS)
        yield f"http://{settings.host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def sdk_of(url: str) -> openai.OpenAI:
    """The unmodified OpenAI client, which checks the shape of every answer."""
    return openai.OpenAI(
        base_url=f"{url}/v1", api_key=API_KEY, max_retries=0, timeout=30, _strict_response_validation=True
    )


def client_of(url: str, *, key: str = API_KEY, timeout: float = 30.0) -> httpx.Client:
    """A plain client that shows the key; its paths are relative to the root."""
    return httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=timeout,
        limits=httpx.Limits(max_connections=None),
    )
