"""What /hf/models refuses, before a worker has anything to do with it."""

from typing import Any

import httpx
import pytest

from tests.integration.api.calls import error
from tests.integration.api.stand_in_worker import EMBEDDING_MODEL

ADDRESS = f"/hf/models/{EMBEDDING_MODEL}"


@pytest.mark.parametrize(
    ("sent", "param", "said"),
    [
        ({"json": {"inputs": "a", "parameters": "b"}}, "parameters", "valid dictionary"),
        ({"json": {"inputs": "a", "parameters": {"depth": 3}}}, "parameters.depth", "unsupported parameter"),
        ({"json": {"parameters": {}}}, "inputs", "missing"),
        ({"json": ["a"]}, None, "JSON object"),
        ({"content": b""}, None, "no body"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, None, "not JSON"),
    ],
)
def test_a_bad_request_is_refused_by_its_field(
    client: httpx.Client, sent: dict[str, Any], param: str | None, said: str
) -> None:
    """The second field's regression: parameters that are no object were reported as `parameters.inputs`."""
    answer = client.post(ADDRESS, **sent)
    found = error(answer)
    assert (answer.status_code, found["param"]) == (400, param)
    assert said in found["message"]
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_file_is_no_text(client: httpx.Client) -> None:
    """Symptom: bytes sent to a task of texts were answered with 200. Cause: the name of their artifact was taken for
    the text. Fix: a file as the body is only for tasks whose input is one."""
    answer = client.post(ADDRESS, content=b"\x89PNG\r\n")
    assert (answer.status_code, error(answer)["param"]) == (400, "inputs")
    assert "Content-Type: application/json" in error(answer)["message"]
    assert client.get("/v1/jobs").json()["data"] == []


def test_json_without_its_content_type_is_json(client: httpx.Client) -> None:
    """As curl sends it: refused here for its parameter, so it was read."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = client.post(ADDRESS, content=b'{"inputs": "a", "parameters": {"depth": 3}}', headers=headers)
    assert error(answer)["param"] == "parameters.depth"
