"""Every route answers 503 in time when the queue's server hangs: nobody waits for a timeout of their own."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tandem.outages import HUNG_SECONDS
from tests.integration.api.api_server import client_of, serving, settings_for
from tests.integration.api.calls import CHAT, error
from tests.integration.api.stand_in_worker import CHAT_MODEL, EMBEDDING_MODEL
from tests.valkey_server import ValkeyServer

ANSWER_SECONDS = 6.0
"""1.5 s, and the rest for a busy machine. A route that waits without a limit never answers."""
TOGETHER = 8
"""Requests at once: enough to finish soon, few enough not to wait for each other on a small machine."""

MANY = 120
"""Requests at once: three times as many as a thread pool has by default, and more than ours has."""
MANY_SECONDS = 2.0
"""Measured: 1.0 s at once, 2.4 s in three rounds."""
TRIES = 5
"""Client and server share this process, and a busy machine may make a try slow; the fault made all of them slow."""

MESSAGES = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "POST /v1/jobs": {"json": CHAT},
    "POST /v1/chat/completions": {"json": {"model": CHAT_MODEL, "messages": MESSAGES}},
    "POST /v1/completions": {"json": {"model": CHAT_MODEL, "prompt": "Hello"}},
    "POST /v1/responses": {"json": {"model": CHAT_MODEL, "input": "Hello"}},
    "POST /v1/embeddings": {"json": {"model": EMBEDDING_MODEL, "input": "Hello"}},
    "POST /v1/adapters": {"json": {"file": f"file-{'0' * 24}", "base": CHAT_MODEL}},
    "POST /v1/fine_tuning/jobs": {"json": {"model": CHAT_MODEL, "training_file": f"file-{'0' * 24}"}},
    "POST /v1/webhook_endpoints": {
        "json": {"name": "x", "url": "https://example.com", "event_types": ["batch.failed"]}
    },
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}": {"json": {"name": "x"}},
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/test": {"json": {"event_type": "batch.failed"}},
    "POST /v1/batches": {
        "json": {
            "input_file_id": f"file-{'0' * 24}",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
    },
    "POST /v1/uploads": {"json": {"filename": "x.jsonl", "purpose": "batch", "bytes": 1, "mime_type": "text/jsonl"}},
    "POST /v1/uploads/{upload_id}/parts": {"files": {"data": b"x"}},
    "POST /v1/uploads/{upload_id}/complete": {"json": {"part_ids": ["part_none"]}},
    "POST /v1/load_lora_adapter": {"json": {"lora_name": "x", "lora_path": f"file-{'0' * 24}"}},
    "POST /v1/unload_lora_adapter": {"json": {"lora_name": "x"}},
    "POST /v1/files": {"files": {"file": b"x"}, "data": {"purpose": "batch"}},
}
NAMES = {
    "job_id": "job_none",
    "file_id": "file-none",
    "adapter": "ft:none",
    "model": "ft:none",
    "name": "tandem.inference.none",
    "artifact": "artifact-none",
    "fine_tuning_job_id": "job_none",
    "webhook_endpoint_id": "we_none",
    "batch_id": "batch_none",
    "upload_id": "upload_none",
    "response_id": "resp_none",
}
WITHOUT_THE_QUEUE = {"GET /v1/webhook_event_types"}
"""What is the same whatever the queue holds."""


@pytest.fixture
def client(own_valkey: ValkeyServer, tmp_path: Path) -> Iterator[httpx.Client]:
    with serving(settings_for(own_valkey.url, tmp_path)) as url, client_of(url) as client:
        assert client.get("/v1/jobs").status_code == 200
        own_valkey.pause()
        yield client
        own_valkey.resume()


def test_every_route_says_so_in_time(client: httpx.Client) -> None:
    """Whatever its path and method: those of the OpenAPI document, so that a new route cannot be forgotten."""

    def ask(route: str) -> tuple[httpx.Response, float]:
        method, path = route.split()
        began = time.monotonic()
        answer = client.request(method, path.format(**NAMES), **BODIES.get(route, {}))
        return answer, time.monotonic() - began

    routes = [
        f"{method.upper()} {path}"
        for path, methods in client.get("/openapi.json").json()["paths"].items()
        for method in methods
        if path.startswith("/v1/") and f"{method.upper()} {path}" not in WITHOUT_THE_QUEUE
    ]
    assert len(routes) > 25
    with ThreadPoolExecutor(TOGETHER) as threads:
        for route, (answer, seconds) in zip(routes, threads.map(ask, routes), strict=True):
            assert answer.status_code == 503, (route, answer.text)
            assert error(answer)["code"] == "queue_unavailable", route
            assert answer.headers["retry-after"] == "1", route
            assert seconds < ANSWER_SECONDS, route


def test_many_at_once_are_told_in_time_as_well(client: httpx.Client) -> None:
    """Symptom: the 41st of them waited twice as long as the first, the 81st longer still. Cause: the framework had 40
    threads for all that block. Fix: more of them, and a hung server is remembered for a moment."""

    def ask(_: int) -> float:
        began = time.monotonic()
        assert client.get("/v1/jobs").status_code == 503
        return time.monotonic() - began

    with ThreadPoolExecutor(MANY) as threads:
        slowest = (max(threads.map(ask, range(MANY))) for _ in range(TRIES))
        assert any(seconds < MANY_SECONDS for seconds in slowest)


def test_it_works_again_as_soon_as_the_server_does(client: httpx.Client, own_valkey: ValkeyServer) -> None:
    assert client.post("/v1/jobs", json=CHAT).status_code == 503
    own_valkey.resume()
    threading.Event().wait(HUNG_SECONDS)
    assert client.post("/v1/jobs", json=CHAT).status_code == 202
    own_valkey.pause()
