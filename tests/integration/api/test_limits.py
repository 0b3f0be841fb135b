"""What every request meets: the key, the body's limit, routes that are not there, the open pages."""

import re
from collections.abc import Iterator

import httpx
import pytest

from tests.integration.api.api_server import BODY_BYTES, client_of
from tests.integration.api.calls import CHAT, error
from tests.integration.api.memory import grows_less_than

HUGE_BYTES = 100 * 2**20
PIECE = b" " * 2**16
GROWTH_BYTES = 32 * 2**20
"""How much the process may grow while it refuses 100 MB: a fraction, for noise."""


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic test-key"}, {"Authorization": "Bearer tést"}],
)
def test_a_wrong_key_is_refused_on_every_route(api_url: str, headers: dict[str, str]) -> None:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    with httpx.Client(base_url=api_url, headers=encoded) as client:
        for answer in (
            client.get("/v1/jobs"),
            client.post("/v1/jobs", json=CHAT),
            client.post("/v1/files", files={"file": b"x"}),
            client.get("/v1/none"),
        ):
            assert (answer.status_code, error(answer)["code"]) == (401, "invalid_api_key")
            assert error(answer)["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"].startswith("req_")


def test_the_open_pages_need_no_key(api_url: str) -> None:
    with httpx.Client(base_url=api_url) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready", "reasons": []}
        assert "/openapi.json" in client.get("/docs").text
        landing = client.get("/").text
        assert 'href="/docs"' in landing
        assert 'href="http://127.0.0.1:5555"' in landing


def test_the_docs_need_no_other_server(api_url: str) -> None:
    """Symptom: /docs was blank on a network without internet. Cause: its script and style came from a CDN. Fix: the
    service serves them itself."""
    with httpx.Client(base_url=api_url) as client:
        sources = re.findall(r'(?:src|href)="([^"]+)"', client.get("/docs").text)
        assert len(sources) >= 3
        assert [source for source in sources if not source.startswith("/")] == []
        assert [source for source in sources if client.get(source).status_code != 200] == []


def test_every_route_of_v1_asks_for_a_key_and_has_errors_of_one_shape(api_url: str) -> None:
    document = httpx.get(f"{api_url}/openapi.json").json()
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    for name, operation in operations.items():
        if "/v1/" in name:
            assert operation["security"] == [{"HTTPBearer": []}]
            assert "4XX" in operation["responses"]
            assert "422" not in operation["responses"]


def test_a_route_or_method_that_is_not_there_is_named(client: httpx.Client) -> None:
    missing = client.get("/v1/none")
    assert (missing.status_code, error(missing)["code"]) == (404, "not_found")
    assert "GET /v1/none" in error(missing)["message"]
    wrong = client.put("/v1/jobs")
    assert (wrong.status_code, error(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"]


def test_a_body_just_under_the_limit_is_taken(client: httpx.Client) -> None:
    room = BODY_BYTES - 1024
    assert client.post("/v1/jobs", json=CHAT | {"inputs": "x" * room}).status_code == 202


def test_a_body_of_100_mb_is_refused_unread(client: httpx.Client) -> None:
    """By its Content-Length; what the client still sends is thrown away, so that it reads the answer."""
    headers = {"Content-Type": "application/json", "Content-Length": str(HUGE_BYTES)}
    with grows_less_than(GROWTH_BYTES):
        answer = client.post("/v1/jobs", content=_blanks(), headers=headers)
    _assert_refused(answer)


def test_a_body_of_100_mb_in_chunks_is_refused_at_the_limit(client: httpx.Client) -> None:
    with grows_less_than(GROWTH_BYTES):
        answer = client.post("/v1/jobs", content=_blanks(), headers={"Content-Type": "application/json"})
    assert answer.request.headers["transfer-encoding"] == "chunked"
    _assert_refused(answer)


def test_a_huge_body_with_a_wrong_key_is_a_wrong_key(api_url: str) -> None:
    with client_of(api_url, key="wrong") as client:
        answer = client.post("/v1/jobs", content=_blanks())
    assert (answer.status_code, error(answer)["code"]) == (401, "invalid_api_key")


def _blanks() -> Iterator[bytes]:
    """100 MB, sent in pieces: the client does not hold them either."""
    for _ in range(HUGE_BYTES // len(PIECE)):
        yield PIECE


def _assert_refused(answer: httpx.Response) -> None:
    assert (answer.status_code, error(answer)["code"]) == (413, "payload_too_large")
    assert str(BODY_BYTES) in error(answer)["message"]
