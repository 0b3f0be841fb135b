"""Who is let in, and what a route learns of the key that was shown."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api.auth import Key, Owner, RequireKey
from tandem.api_keys import ApiKeys
from tandem.api_keys_file import KeysFile
from tandem.settings import ApiSettings


def app_of(settings: ApiSettings) -> TestClient:
    """An application of one route that tells what it knows of the key."""
    app = FastAPI()
    app.add_middleware(RequireKey, keys=ApiKeys.load(settings))

    @app.get("/v1/whoami")
    def whoami(owner: Owner, key: Key) -> dict[str, object]:
        return {"owner": owner, "key": key.model_dump()}

    return TestClient(app)


def show(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def file(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys.toml")


def test_the_single_key_is_the_default_owner() -> None:
    client = app_of(ApiSettings(api_key=SecretStr("one-key")))
    assert client.get("/v1/whoami", headers=show("one-key")).json() == {
        "owner": "default",
        "key": {"owner": "default", "operator": True, "weight": 1.0, "max_queued": None},
    }


def test_a_key_of_the_file_has_its_owner_share_and_limit(file: KeysFile) -> None:
    key = file.add("team-a", weight=2.0, max_queued=10)
    client = app_of(ApiSettings(api_key=SecretStr("one-key"), api_keys_file=file.path))
    assert client.get("/v1/whoami", headers=show(key)).json() == {
        "owner": "team-a",
        "key": {"owner": "team-a", "operator": False, "weight": 2.0, "max_queued": 10},
    }
    assert client.get("/v1/whoami", headers=show("one-key")).json()["owner"] == "default"


def test_a_revoked_key_is_refused_at_the_next_request(file: KeysFile) -> None:
    revoked, other = file.add("team-a"), file.add("team-b")
    client = app_of(ApiSettings(api_keys_file=file.path))
    assert client.get("/v1/whoami", headers=show(revoked)).status_code == 200
    file.revoke("team-a")
    answer = client.get("/v1/whoami", headers=show(revoked))
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert client.get("/v1/whoami", headers=show(other)).json()["owner"] == "team-b"


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic one-key", "one-key", "Bearer one-key2", "Bearer one-ke"],
)
def test_nothing_else_opens_the_door(authorization: str | None) -> None:
    client = app_of(ApiSettings(api_key=SecretStr("one-key")))
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = client.get("/v1/whoami", headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_the_digest_in_the_file_is_no_key(file: KeysFile) -> None:
    """Who reads the file is not let in by what stands there."""
    file.add("team-a")
    client = app_of(ApiSettings(api_keys_file=file.path))
    assert client.get("/v1/whoami", headers=show(file.entries()[0].sha256)).status_code == 401
