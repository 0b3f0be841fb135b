"""What every answer says besides its body, and which web pages may read it."""

from pathlib import Path

import httpx
import pytest

from tandem.api_keys import digest_of
from tandem.settings import ApiSettings
from tests.integration.api.api_server import API_KEY, client_of, serving
from tests.integration.api.calls import CHAT, submit
from tests.integration.api.stand_in_worker import StandInWorker, generated

PAGE = "https://app.example.com"


def shown(answer: httpx.Response) -> tuple[str | None, str | None, str | None]:
    limit, remaining, reset = (
        answer.headers.get(f"x-ratelimit-{name}-requests") for name in ("limit", "remaining", "reset")
    )
    return limit, remaining, reset


def test_every_answer_says_how_long_it_took(client: httpx.Client, api_url: str) -> None:
    for answer in (client.get("/v1/jobs"), client.get("/v1/none"), httpx.get(f"{api_url}/v1/jobs"), client.get("/")):
        assert 0 <= int(answer.headers["openai-processing-ms"]) <= answer.elapsed.total_seconds() * 1000 + 1
        assert answer.headers["x-request-id"].startswith("req_")


def test_a_key_without_a_limit_is_told_of_none(client: httpx.Client) -> None:
    assert shown(client.post("/v1/jobs", json=CHAT)) == (None, None, None)


def test_a_key_with_a_limit_sees_what_is_left(
    api_settings: ApiSettings, valkey_url: str, tmp_path: Path, worker: StandInWorker
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nname = "ant"\nsha256 = "{digest_of("ant")}"\nmax_queued = 2\n')
    with serving(api_settings.model_copy(update={"api_keys_file": file})) as url, client_of(url, key="ant") as ant:
        assert shown(ant.post("/v1/jobs", json=CHAT)) == ("2", "1", "30s")
        assert shown(ant.post("/v1/jobs", json=CHAT)) == ("2", "0", "30s")
        refused = ant.post("/v1/jobs", json=CHAT)
        assert refused.status_code == 429
        assert shown(refused) == ("2", "0", "30s")
        assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("30", "30000")
        worker.succeed(worker.take(), generated("Hello"))
        limit, remaining, reset = shown(ant.post("/v1/jobs", json=CHAT))
        # One job has ended in the last minute: two take two minutes, and a little more with each second that passes.
        assert (limit, remaining, str(reset)[:2]) == ("2", "0", "2m")
        assert shown(ant.get("/v1/jobs")) == (None, None, None)


def test_no_web_page_may_call_by_default(client: httpx.Client) -> None:
    answer = client.get("/v1/models", headers={"Origin": PAGE})
    assert [name for name in answer.headers if name.startswith("access-control-")] == []
    assert client.options("/v1/models", headers={"Origin": PAGE}).status_code == 405


@pytest.fixture
def open_to_a_page(api_settings: ApiSettings) -> ApiSettings:
    return api_settings.model_copy(update={"cors_origins": (PAGE,)})


def test_a_page_of_an_allowed_origin_may_call_and_read(open_to_a_page: ApiSettings, valkey_url: str) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    with serving(open_to_a_page) as url, httpx.Client(base_url=url) as client:
        preflight = client.options("/v1/chat/completions", headers={"Origin": PAGE, **asks})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        assert (
            client.options("/v1/chat/completions", headers={"Origin": "https://else.where", **asks}).status_code
            == 400
        )
        for key, status in ((API_KEY, 200), ("wrong", 401)):
            answer = client.get("/v1/models", headers={"Origin": PAGE, "Authorization": f"Bearer {key}"})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers
        with client_of(url) as own:
            submit(own)
