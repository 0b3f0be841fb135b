"""Names for adapters, as vLLM's clients give them: at once a model for every route."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from tandem import Tandem
from tandem.errors import InvalidRequest, UnknownAdapter
from tandem.workers import WorkerInfo, WorkerRegistry
from tests.integration.api.api_server import API_KEY
from tests.integration.api.calls import CHAT, error
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker, generated
from tests.integration.api.test_adapter_import import GOOD, add
from tests.integration.api.test_files import upload

SMALL_WORKER = WorkerInfo(
    id="small",
    host="here",
    pid=1,
    device="cpu",
    roles=("inference",),
    adapter_slots=2,
    resident=(),
    running=0,
    started_at=0.0,
)


@pytest.fixture
def tandem(api_url: str) -> Iterator[Tandem]:
    with Tandem(api_url, API_KEY, timeout=30.0) as tandem:
        yield tandem


@pytest.fixture
def adapter(client: httpx.Client) -> str:
    return str(add(client, GOOD).json()["id"])


def load(client: httpx.Client, name: str, path: str, **asked: object) -> httpx.Response:
    return client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, **asked})


def unload(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("/v1/unload_lora_adapter", json={"lora_name": name})


def test_a_named_adapter_is_a_model(api_url: str, client: httpx.Client, worker: StandInWorker, adapter: str) -> None:
    loaded = load(client, "support", adapter)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'support' added successfully.")
    assert loaded.headers["content-type"].startswith("text/plain")
    with (
        openai.OpenAI(base_url=f"{api_url}/v1", api_key=API_KEY, max_retries=0, timeout=30) as sdk,
        worker.answering(generated("Hello")),
    ):
        answer = sdk.chat.completions.create(model="support", messages=[{"role": "user", "content": "Hi"}])
        model = sdk.models.retrieve("support")
        assert "support" in {found.id for found in sdk.models.list()}
    assert answer.choices[0].message.content == "Hello"
    assert model.to_dict() | {"root": adapter, "parent": CHAT_MODEL, "owned_by": "default"} == model.to_dict()
    job = client.get("/v1/jobs").json()["data"][0]
    assert (job["model"], job["adapter"]) == (CHAT_MODEL, adapter)


def test_an_uploaded_folder_is_published_and_named(client: httpx.Client) -> None:
    file = upload(client, GOOD, purpose="adapter", name="adapter.zip")
    assert load(client, "theirs", file).status_code == 200
    (published,) = client.get("/v1/adapters").json()["data"]
    job = client.post("/v1/jobs", json=CHAT | {"adapter": "theirs"}).json()
    assert (job["model"], job["adapter"]) == (CHAT_MODEL, published["id"])


def test_a_name_that_is_taken_is_replaced_only_on_purpose(client: httpx.Client, adapter: str) -> None:
    load(client, "support", adapter)
    other = add(client, GOOD, suffix="other").json()["id"]
    refused = load(client, "support", other)
    assert (refused.status_code, error(refused)["param"]) == (400, "lora_name")
    assert "has already been loaded" in error(refused)["message"]
    assert load(client, "support", other, load_inplace=True).status_code == 200
    assert client.get("/v1/models/support").json()["root"] == other


def test_an_unloaded_name_stands_for_nothing(client: httpx.Client, adapter: str) -> None:
    load(client, "support", adapter)
    gone = unload(client, "support")
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'support' removed successfully.")
    for answer, code in (
        (client.get("/v1/models/support"), "model_not_found"),
        (client.post("/v1/jobs", json=CHAT | {"model": "support"}), "model_not_found"),
        (unload(client, "support"), "adapter_not_found"),
    ):
        assert (answer.status_code, error(answer)["code"]) == (404, code)
    assert client.get(f"/v1/models/{adapter}").status_code == 200


@pytest.mark.parametrize("path", ["models", "adapters"])
def test_a_deleted_adapter_takes_its_names_with_it(client: httpx.Client, adapter: str, path: str) -> None:
    load(client, "support", adapter)
    deleted = client.delete(f"/v1/{path}/{adapter}")
    assert deleted.json() == {"id": adapter, "object": path.removesuffix("s"), "deleted": True}
    assert client.get("/v1/models/support").status_code == 404
    assert {adapter, "support"}.isdisjoint(model["id"] for model in client.get("/v1/models").json()["data"])
    again = client.delete(f"/v1/{path}/{adapter}")
    assert (again.status_code, error(again)["code"]) == (404, "adapter_not_found")


def test_an_adapter_is_pinned_until_it_is_unpinned_or_deleted(
    tandem: Tandem, client: httpx.Client, adapter: str
) -> None:
    def pinned() -> list[bool]:
        return [record["pinned"] for record in client.get("/v1/adapters").json()["data"]]

    assert (pinned(), tandem.adapter(adapter).record["pinned"]) == ([False], False)
    assert tandem.pin_adapter(adapter).record["pinned"]
    assert (pinned(), tandem.adapter(adapter).record["pinned"]) == ([True], True)
    assert not tandem.unpin_adapter(adapter).record["pinned"]
    assert pinned() == [False]
    tandem.pin_adapter(adapter)
    tandem.delete_adapter(adapter)
    assert str(add(client, GOOD).json()["id"]) == adapter
    assert pinned() == [False]
    with pytest.raises(UnknownAdapter):
        tandem.pin_adapter("ft:none")


def test_one_slot_of_the_smallest_worker_is_left_to_adapters_that_are_not_pinned(
    tandem: Tandem, worker: StandInWorker, client: httpx.Client, adapter: str
) -> None:
    second = str(add(client, GOOD, suffix="second").json()["id"])
    WorkerRegistry(worker.jobs).announce(SMALL_WORKER, seconds=60)
    tandem.pin_adapter(adapter)
    tandem.pin_adapter(adapter)
    with pytest.raises(InvalidRequest, match=r"1 adapters of .* are pinned, .* 2 slots .*TANDEM_ADAPTER_SLOTS"):
        tandem.pin_adapter(second)
    tandem.unpin_adapter(adapter)
    assert tandem.pin_adapter(second).record["pinned"]


def test_deleting_a_name_leaves_the_adapter(client: httpx.Client, adapter: str) -> None:
    load(client, "support", adapter)
    assert client.delete("/v1/models/support").json() == {"id": "support", "object": "model", "deleted": True}
    assert client.get(f"/v1/models/{adapter}").status_code == 200
    assert client.get("/v1/models/support").status_code == 404


def test_a_base_is_never_deleted(client: httpx.Client) -> None:
    refused = client.delete(f"/v1/models/{CHAT_MODEL}")
    assert (refused.status_code, error(refused)["param"]) == (400, "model")
    assert "only adapters" in error(refused)["message"]
    assert client.get(f"/v1/models/{CHAT_MODEL}").status_code == 200
    missing = client.delete("/v1/models/org/none")
    assert (missing.status_code, error(missing)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("asked", "status", "param", "said"),
    [
        ({"lora_path": "/srv/adapters/support"}, 400, "lora_path", "paths of the server's disk are not read"),
        ({"lora_path": "someone/adapter"}, 400, "lora_path", "file-…"),
        ({"lora_path": "ft:none"}, 404, "lora_path", "ft:none"),
        ({"lora_path": "file-" + "0" * 24}, 404, "lora_path", "there is no file"),
        ({"lora_name": CHAT_MODEL}, 400, "lora_name", "is a base model"),
        ({"lora_name": "ft:mine"}, 400, "lora_name", "begins as the ids of adapters do"),
        ({"lora_name": ""}, 400, "lora_name", "pattern"),
        ({"color": "red"}, 400, "color", "unsupported parameter"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_its_field(
    client: httpx.Client, adapter: str, asked: dict[str, str], status: int, param: str, said: str
) -> None:
    answer = client.post("/v1/load_lora_adapter", json={"lora_name": "support", "lora_path": adapter} | asked)
    assert (answer.status_code, error(answer)["param"]) == (status, param)
    assert said in error(answer)["message"]


def test_the_base_of_an_uploaded_folder_is_checked(client: httpx.Client) -> None:
    file = upload(client, GOOD, purpose="adapter", name="adapter.zip")
    other = load(client, "theirs", file, base_model_name="all-minilm-l6-v2")
    assert (other.status_code, error(other)["param"]) == (400, "base_model_name")
    unknown = load(client, "theirs", file, base_model_name="none")
    assert (unknown.status_code, error(unknown)["param"]) == (404, "base_model_name")
    rows = upload(client, GOOD, purpose="user_data", name="adapter.zip")
    purpose = load(client, "theirs", rows)
    assert (purpose.status_code, error(purpose)["param"]) == (400, "lora_path")
