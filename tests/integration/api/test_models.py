"""Models and adapters, with adapters published as a worker publishes them."""

import io
import json
import zipfile
from pathlib import Path

import httpx
import pytest

from tandem.adapters import AdapterManifest
from tandem.services import Services
from tandem.specs import LoraMethod
from tests.integration.api.calls import CHAT, error
from tests.integration.api.stand_in_worker import CHAT_MODEL, EMBEDDING_MODEL

PEFT_FILES = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": bytes(range(256)) * 5000}
ADAPTER = f"ft:{CHAT_MODEL}:default:support:01234567"


@pytest.fixture
def adapter(services: Services, tmp_path: Path) -> AdapterManifest:
    """A published adapter. Its weights are no weights: nothing loads them here."""
    for name, content in PEFT_FILES.items():
        (tmp_path / name).write_bytes(content)
    files = services.adapters.put_folder(tmp_path)
    manifest = AdapterManifest(
        id=ADAPTER,
        owner="default",
        base=CHAT_MODEL,
        base_revision=None,
        task="text-generation",
        method=LoraMethod(r=8),
        job_id="job_0123456789abcdef01234567",
        training_data="0" * 64,
        validation_data=None,
        metrics={"loss": 1.25},
        files={name: artifact.digest for name, artifact in files.items()},
        created_at=1_700_000_000.5,
    )
    # An earlier test's document of the same id may stand in the session's artifact store.
    services.artifacts.retract("adapters/" + ADAPTER.replace(":", "_") + ".json")
    return services.adapters.publish(manifest)


def test_bases_and_adapters_are_models(client: httpx.Client, adapter: AdapterManifest) -> None:
    page = client.get("/v1/models").json()
    models = {model["id"]: model for model in page["data"]}
    assert page["object"] == "list"
    assert models[CHAT_MODEL]["tasks"] == ["text-generation"]
    assert (models[CHAT_MODEL]["root"], models[CHAT_MODEL]["parent"]) == (CHAT_MODEL, None)
    assert models[EMBEDDING_MODEL]["tasks"] == ["feature-extraction", "sentence-similarity"]
    assert models[adapter.id] == {
        "id": adapter.id,
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "default",
        "root": CHAT_MODEL,
        "parent": CHAT_MODEL,
        "base": CHAT_MODEL,
        "tasks": ["text-generation"],
        "default_for": [],
        "resident": [],
    }
    for name, model in models.items():
        assert client.get(f"/v1/models/{name}").json() == model


def test_an_unknown_model_is_named_with_those_there_are(client: httpx.Client) -> None:
    answer = client.get("/v1/models/org/none")
    assert (answer.status_code, error(answer)["code"]) == (404, "model_not_found")
    assert "org/none" in error(answer)["message"]
    assert CHAT_MODEL in error(answer)["message"]


def test_an_adapter_shows_its_manifest(client: httpx.Client, adapter: AdapterManifest) -> None:
    shown = client.get(f"/v1/adapters/{adapter.id}").json()
    assert (shown["object"], shown["base"], shown["metrics"]) == ("adapter", CHAT_MODEL, {"loss": 1.25})
    assert shown["method"] == LoraMethod(r=8).model_dump(mode="json")
    assert client.get("/v1/adapters").json()["data"] == [shown]


def test_an_adapter_is_downloaded_as_its_peft_folder(client: httpx.Client, adapter: AdapterManifest) -> None:
    answer = client.get(f"/v1/adapters/{adapter.id}/download")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        unpacked = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(unpacked.pop("tandem_manifest.json"))
    assert unpacked == PEFT_FILES
    assert manifest["id"] == adapter.id


def test_a_job_may_name_an_adapter_as_its_model(client: httpx.Client, adapter: AdapterManifest) -> None:
    job = client.post("/v1/jobs", json=CHAT | {"model": adapter.id}).json()
    assert (job["model"], job["adapter"]) == (CHAT_MODEL, adapter.id)


def test_an_adapter_of_another_base_is_refused(client: httpx.Client, adapter: AdapterManifest) -> None:
    spec = {
        "kind": "inference",
        "task": "feature-extraction",
        "model": EMBEDDING_MODEL,
        "adapter": adapter.id,
        "inputs": "a",
    }
    answer = client.post("/v1/jobs", json=spec)
    assert (answer.status_code, error(answer)["code"]) == (400, "adapter_base_mismatch")
    assert error(answer)["param"] == "adapter"
    assert CHAT_MODEL in error(answer)["message"]
    assert EMBEDDING_MODEL in error(answer)["message"]


def test_a_deleted_adapter_cannot_be_named_any_more(client: httpx.Client, adapter: AdapterManifest) -> None:
    assert client.delete(f"/v1/adapters/{adapter.id}").json() == {
        "id": adapter.id,
        "object": "adapter",
        "deleted": True,
    }
    for answer in (
        client.get(f"/v1/adapters/{adapter.id}"),
        client.get(f"/v1/adapters/{adapter.id}/download"),
        client.get(f"/v1/models/{adapter.id}"),
        client.delete(f"/v1/adapters/{adapter.id}"),
        client.post("/v1/jobs", json=CHAT | {"model": adapter.id}),
    ):
        assert (answer.status_code, error(answer)["code"]) == (404, "adapter_not_found")
    assert client.get("/v1/adapters").json()["data"] == []
