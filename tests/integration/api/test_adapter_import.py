"""Adapters trained elsewhere over HTTP: uploaded, checked, listed, and refused with the field and the fault."""

import httpx
import pytest

from tests.integration.api.api_server import API_KEY
from tests.integration.api.calls import error
from tests.integration.api.stand_in_worker import CHAT_MODEL
from tests.integration.api.test_files import upload
from tests.unit.contract.peft_folders import LORA_CONFIG, adapter_files, zipped

WIDTH = 576
"""Of the chat model's attention."""
Q_PROJ = "base_model.model.model.layers.3.self_attn.q_proj"
SHAPES = {f"{Q_PROJ}.lora_A.weight": (4, WIDTH), f"{Q_PROJ}.lora_B.weight": (WIDTH, 4)}
GOOD = zipped(adapter_files(LORA_CONFIG, SHAPES))


def add(client: httpx.Client, content: bytes, **asked: str) -> httpx.Response:
    file = upload(client, content, purpose="adapter", name="adapter.zip")
    return client.post("/v1/adapters", json={"file": file, "base": CHAT_MODEL, **asked})


def test_it_is_shown_like_any_other_adapter(client: httpx.Client) -> None:
    answer = add(client, GOOD, suffix="theirs")
    assert answer.status_code == 201, answer.text
    added = answer.json()
    assert added["id"].startswith(f"ft:{CHAT_MODEL}:default:theirs:")
    assert (added["object"], added["owner"], added["base"]) == ("adapter", "default", CHAT_MODEL)
    assert (added["task"], added["job_id"], added["training_data"]) == ("text-generation", None, None)
    assert (added["method"]["type"], added["method"]["peft_type"], added["method"]["r"]) == ("imported", "LORA", 4)
    assert added["checked"] == "files and base"
    assert client.get("/v1/adapters").json()["data"] == [added]
    assert client.get(f"/v1/adapters/{added['id']}").json() == added
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert models[added["id"]]["parent"] == CHAT_MODEL


def test_sent_again_it_is_the_same(client: httpx.Client) -> None:
    first = add(client, GOOD).json()
    assert add(client, GOOD).json() == first
    downloaded = client.get(f"/v1/adapters/{first['id']}/download").content
    assert add(client, downloaded).json() == first


def test_jobs_may_name_it_at_once(client: httpx.Client) -> None:
    added = add(client, GOOD).json()["id"]
    job = {"kind": "inference", "task": "text-generation", "model": added, "inputs": "Hello"}
    submitted = client.post("/v1/jobs", json=job)
    assert submitted.status_code == 202, submitted.text
    assert (submitted.json()["model"], submitted.json()["adapter"]) == (CHAT_MODEL, added)


@pytest.mark.parametrize(
    ("content", "asked", "status", "code", "param", "reason"),
    [
        (b"no zip file", {}, 400, "invalid_request", "file", "does not end as a zip file"),
        (zipped({"../a.json": b""}), {}, 400, "invalid_request", "file", "leaves the folder"),
        (
            zipped(adapter_files(LORA_CONFIG | {"peft_type": "HRA"}, SHAPES)),
            {},
            400,
            "invalid_request",
            "file",
            "peft_type is 'HRA'",
        ),
        (zipped(adapter_files()), {}, 400, "adapter_base_mismatch", "base", "is for weights [16, 16]"),
        (GOOD, {"base": "all-minilm-l6-v2"}, 400, "task_not_supported", "base", "must do 'text-generation'"),
        (GOOD, {"base": "none"}, 404, "model_not_found", "model", "no model 'none'"),
        (GOOD, {"suffix": "Not A Word"}, 400, "invalid_request", "suffix", "suffix"),
        (GOOD, {"file": "file-1"}, 400, "invalid_request", "file", "file"),
        (GOOD, {"file": f"file-{'0' * 24}"}, 404, "file_not_found", "file", "there is no file"),
        (GOOD, {"rank": "4"}, 400, "invalid_request", "rank", "rank"),
    ],
)
def test_what_cannot_be_served_is_refused(
    content: bytes, asked: dict[str, str], status: int, code: str, param: str, reason: str, client: httpx.Client
) -> None:
    answer = add(client, content, **asked)
    refused = error(answer)
    assert (answer.status_code, refused["code"], refused["param"]) == (status, code, param)
    assert reason in refused["message"]
    assert client.get("/v1/adapters").json()["data"] == []


def test_a_file_of_another_purpose_is_refused(client: httpx.Client) -> None:
    file = upload(client, GOOD, purpose="user_data")
    answer = client.post("/v1/adapters", json={"file": file, "base": CHAT_MODEL})
    assert (answer.status_code, error(answer)["param"]) == (400, "file")
    assert "upload it with purpose 'adapter'" in error(answer)["message"]


def test_nobody_adds_one_without_a_key(api_url: str) -> None:
    answer = httpx.post(f"{api_url}/v1/adapters", json={"file": f"file-{'0' * 24}", "base": CHAT_MODEL})
    assert (answer.status_code, error(answer)["code"]) == (401, "invalid_api_key")
    assert API_KEY not in answer.text
