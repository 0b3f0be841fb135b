"""Requests that many tests make, and what an error's body must look like."""

import httpx

from tests.integration.api.stand_in_worker import CHAT_MODEL

CHAT = {
    "kind": "inference",
    "task": "text-generation",
    "model": CHAT_MODEL,
    "inputs": [{"role": "user", "content": "Hello"}],
}


def submit(client: httpx.Client, **changes: object) -> str:
    answer = client.post("/v1/jobs", json=CHAT | changes)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def error(answer: httpx.Response) -> dict[str, str]:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    found: dict[str, str] = body["error"]
    return found
