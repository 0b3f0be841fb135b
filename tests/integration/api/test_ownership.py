"""Whose a thing is: to keys of other owners it does not exist, and the service as a whole is the operators'.

The routes are those of the OpenAPI document: one that is added is asked here too.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest

from tandem.api_keys import digest_of
from tandem.errors import OutOfMemory
from tandem.services import Services
from tandem.settings import ApiSettings
from tests.integration.api.api_server import client_of, serving
from tests.integration.api.calls import CHAT, error, submit
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker
from tests.integration.api.test_adapter_import import GOOD, add
from tests.integration.api.test_files import LINE, upload
from tests.integration.api.test_lora_adapters import load
from tests.integration.api.test_openapi import JSON, examples, operations
from tests.integration.api.test_uploads import begin

KEYS = {"ann": "ann", "amy": "ann", "bob": "bob"}
"""Key → owner; both are called the same here. The operator's is the one of TANDEM_API_KEY."""
BATCH = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
TRAINING = {"kind": "finetune", "model": CHAT_MODEL, "suffix": "x"}
UNREACHABLE = "http://127.0.0.1:9/"
"""A private address: the service refuses to call it, at once."""
NOT_WAITING_SECONDS = 0.01
"""No worker runs: an answer that is waited for comes as a timeout."""
SEEING = '[[models]]\nname = "seeing"\nfolder = "seeing"\ntasks = ["image-classification"]\n'
"""A model that takes files as inputs. Nothing loads it."""
ANYTHING = {"task": "text-generation", "artifact": "artifact-none"}
"""Parameters of paths that name no thing that somebody owns."""
NAMING: list[tuple[str, dict[str, Any]]] = [
    ("/v1/jobs", CHAT | {"model": "{adapter}"}),
    ("/v1/jobs", CHAT | {"adapter": "{adapter}"}),
    ("/v1/jobs", CHAT | {"adapter": "support"}),
    ("/v1/jobs", {"kind": "inference", "task": "image-classification", "model": "seeing", "inputs": "{file_id}"}),
    ("/v1/jobs", TRAINING | {"training_file": "{file_id}"}),
    ("/v1/jobs", TRAINING | {"training_file": "{own}", "validation_file": "{file_id}"}),
    ("/v1/fine_tuning/jobs", {"model": CHAT_MODEL, "training_file": "{file_id}"}),
    ("/v1/batches", BATCH | {"input_file_id": "{file_id}"}),
    ("/v1/adapters", {"file": "{file_id}", "base": CHAT_MODEL}),
    ("/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": "{adapter}"}),
    ("/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": "{file_id}"}),
    ("/v1/responses", {"model": CHAT_MODEL, "input": "Hi", "previous_response_id": "{response_id}"}),
    ("/v1/chat/completions", {"model": "{adapter}", "messages": CHAT["inputs"]}),
    ("/v1/chat/completions", {"model": "support", "messages": CHAT["inputs"]}),
    ("/v1/unload_lora_adapter", {"lora_name": "support"}),
]
"""Requests that name a thing of Ann's, or the name `support` that she gave to her adapter."""


@dataclass(frozen=True)
class Clients:
    ann: httpx.Client
    amy: httpx.Client
    bob: httpx.Client
    operator: httpx.Client


@pytest.fixture
def clients(api_settings: ApiSettings, valkey_url: str, tmp_path: Path) -> Iterator[Clients]:
    keys, catalogue = tmp_path / "keys.toml", tmp_path / "models.toml"
    entry = '[[keys]]\nname = "{}"\nowner = "{}"\nsha256 = "{}"\n'
    keys.write_text("".join(entry.format(key, owner, digest_of(key)) for key, owner in KEYS.items()))
    catalogue.write_text(resources.files("tandem").joinpath("models.toml").read_text() + SEEING)
    changed = api_settings.model_copy(
        update={"api_keys_file": keys, "catalogue": catalogue, "wait_seconds": NOT_WAITING_SECONDS}
    )
    with serving(changed) as url, ExitStack() as stack:
        yield Clients(
            operator=stack.enter_context(client_of(url)),
            **{key: stack.enter_context(client_of(url, key=key)) for key in KEYS},
        )


@pytest.fixture
def anns(clients: Clients, services: Services, worker: StandInWorker) -> dict[str, str]:
    """One of each thing, made by Ann: the parameter that names it in paths → its id."""
    ann = clients.ann
    job = submit(ann)
    worker.bury(worker.take(), OutOfMemory())
    rows, requests = upload(ann, LINE), upload(ann, b"{}\n", purpose="batch")
    endpoint = services.webhook_endpoints.create(owner="ann", name="x", url=UNREACHABLE, event_types=["job.failed"])
    return {
        "job_id": job,
        "response_id": made(ann, "/v1/responses", model=CHAT_MODEL, input="Hi", background=True),
        "file_id": rows,
        "upload_id": begin(ann),
        "batch_id": made(ann, "/v1/batches", input_file_id=requests, **BATCH),
        "fine_tuning_job_id": made(ann, "/v1/jobs", training_file=rows, **TRAINING),
        "adapter": add(ann, GOOD).json()["id"],
        "model": add(ann, GOOD, suffix="other").json()["id"],
        "webhook_endpoint_id": endpoint.record.id,
    }


def made(client: httpx.Client, path: str, **body: object) -> str:
    answer = client.post(path, json=body)
    assert answer.is_success, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def document(clients: Clients) -> dict[str, Any]:
    found: dict[str, Any] = clients.operator.get("/openapi.json").json()
    return found


def body_of(operation: dict[str, Any]) -> dict[str, Any]:
    """A valid body, as httpx takes it."""
    content = operation.get("requestBody", {}).get("content", {})
    if JSON in content:
        return {"json": examples(content[JSON])[0]}
    return {"files": {"data": b"abc"}} if content else {}


def absent(thing: str) -> str:
    """An id of the same form that nothing has."""
    return thing[:-8] + "0" * 8


def told(answer: httpx.Response, name: str) -> tuple[int, str]:
    """The whole answer, but for the name that was asked for."""
    return answer.status_code, json.dumps(error(answer)).replace(name, "…")


def is_operators(operation: dict[str, Any]) -> bool:
    return "403" in operation["responses"]


def test_anothers_thing_is_answered_as_if_it_did_not_exist(
    clients: Clients, anns: dict[str, str], document: dict[str, Any]
) -> None:
    """In every route whose path names a thing, and in the same words. Its owner and operators are answered."""
    asked = set()
    # Deletions last: Ann's things are to be there for all that is asked before.
    for name, operation in sorted(operations(document), key=lambda route: route[0].startswith("DELETE")):
        method, _, path = name.partition(" ")
        named = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"} - ANYTHING.keys()
        if not named or is_operators(operation):
            continue
        (parameter,) = named
        thing = anns[parameter]
        body = body_of(operation)

        def ask(client: httpx.Client, thing: str, *, parameter: str = parameter, path: str = path) -> httpx.Response:
            return client.request(method, path.format(**ANYTHING, **{parameter: thing}), **body)  # noqa: B023

        refused = told(ask(clients.bob, thing), thing)
        assert refused[0] == 404, (name, refused)
        assert refused == told(ask(clients.bob, absent(thing)), absent(thing)), name
        for client in (clients.operator,) if method == "DELETE" else (clients.ann, clients.amy, clients.operator):
            answer = ask(client, thing)
            assert answer.is_success or told(answer, thing) != refused, (name, answer.text)
        asked.add(parameter)
    assert asked == anns.keys()


def test_lists_show_what_is_ones_own(clients: Clients, anns: dict[str, str], document: dict[str, Any]) -> None:
    """In every list; a second key of the same owner sees the same, an operator everybody's."""
    bobs = submit(clients.bob)
    shown = set()
    for name, operation in operations(document):
        method, _, path = name.partition(" ")
        if method != "GET" or "{" in path or is_operators(operation) or not path.startswith("/v1/"):
            continue
        ids = {key: listed(getattr(clients, key), path) for key in ("ann", "amy", "bob", "operator")}
        assert not ids["bob"] & set(anns.values()), name
        assert bobs not in ids["ann"], name
        assert ids["ann"] == ids["amy"], name
        assert ids["operator"] == ids["ann"] | ids["bob"], name
        parameters = {one["name"] for one in operation.get("parameters", [])}
        for thing in ids["ann"] if "after" in parameters else ():
            assert clients.bob.get(path, params={"after": thing}).status_code == 404, (name, thing)
        shown |= ids["ann"] & set(anns.values())
    assert listed(clients.bob, "/v1/jobs") == listed(clients.bob, "/v1/jobs?state=queued&kind=inference") == {bobs}
    # Uploads and responses have no list.
    assert shown == set(anns.values()) - {anns["upload_id"], anns["response_id"]}


def listed(client: httpx.Client, path: str) -> set[str]:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return {one if isinstance(one, str) else one["id"] for one in answer.json()["data"]}


def test_anothers_thing_cannot_be_named_in_a_request(clients: Clients, anns: dict[str, str]) -> None:
    assert load(clients.ann, "support", anns["adapter"]).status_code == 200
    own = {client: upload(client, LINE) for client in (clients.ann, clients.bob)}
    for path, body in NAMING:

        def ask(client: httpx.Client, *, path: str = path, body: dict[str, Any] = body) -> httpx.Response:
            names = anns | {"own": own[client]}
            return client.post(
                path,
                json={key: value.format(**names) if isinstance(value, str) else value for key, value in body.items()},
            )

        refused = ask(clients.bob)
        assert refused.status_code == 404, (path, body, refused.text)
        assert ask(clients.ann).status_code != 404, (path, body)


def test_a_name_for_an_adapter_is_its_owners_word(clients: Clients) -> None:
    """Two owners may give the same one; a deleted adapter takes its own names along, whoever gave them."""
    adapters = {client: add(client, GOOD).json()["id"] for client in (clients.ann, clients.bob)}
    for client, adapter in adapters.items():
        assert load(client, "support", adapter).status_code == 200
        assert client.get("/v1/models/support").json()["root"] == adapter
    assert clients.operator.get("/v1/models/support").status_code == 404
    assert load(clients.operator, "support", adapters[clients.ann]).status_code == 200
    clients.ann.delete(f"/v1/adapters/{adapters[clients.ann]}")
    assert [client.get("/v1/models/support").status_code for client in (clients.ann, clients.operator)] == [404, 404]
    assert clients.bob.get("/v1/models/support").status_code == 200


def test_the_service_as_a_whole_is_the_operators(clients: Clients, document: dict[str, Any]) -> None:
    """Lanes, maintenance and metrics concern all owners. The refusal says which key it takes."""
    theirs = [name for name, operation in operations(document) if is_operators(operation)]
    assert {"GET /metrics", "POST /v1/service/pause", "POST /v1/lanes/{name}/resume"} < set(theirs)
    lane = clients.operator.get("/v1/lanes").json()["data"][0]["lane"]
    adapter = add(clients.bob, GOOD).json()["id"]
    for name in theirs:
        method, _, path = name.partition(" ")
        refused = clients.bob.request(method, path.format(name=lane, adapter=adapter))
        assert (refused.status_code, error(refused)["code"]) == (403, "forbidden"), name
        assert "--operator" in error(refused)["message"]
    assert clients.operator.get("/v1/lanes").json()["paused_since"] is None
    for name in theirs:
        method, _, path = name.partition(" ")
        answered = clients.operator.request(method, path.format(name=lane, adapter=adapter))
        assert answered.status_code == 200, name
