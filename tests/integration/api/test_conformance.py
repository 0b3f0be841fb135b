"""The running service against its own OpenAPI document, as schemathesis checks it.

Whatever a request that the document allows, or nearly allows: the answer is one that the document names, and no
failure of the server.
"""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tandem.artifacts import ArtifactStore
from tandem.errors import InvalidRequest
from tandem.job import Failure, JobState
from tandem.job_store import Claim, JobStore
from tandem.settings import ApiSettings
from tandem.tickets import lane
from tests.integration.api.api_server import API_KEY, client_of, serving
from tests.integration.api.calls import CHAT
from tests.integration.api.stand_in_worker import CHAT_MODEL, EMBEDDING_MODEL, WORKER, generated
from tests.integration.api.test_adapter_import import GOOD, add
from tests.integration.api.test_files import LINE, upload
from tests.integration.api.test_uploads import ANNOUNCED

EXAMPLES = 4
"""Requests of each kind (allowed, nearly allowed) for each route: each more takes two seconds. Raise it to 40 after a
change of many routes: that found what a few do not.
"""
ANSWER_SECONDS = 10.0
"""Above the time that a door waits for its job."""
CHAT_PATH, EMBEDDINGS_PATH = "/v1/chat/completions", "/v1/embeddings"
CALL = json.dumps(
    {
        "custom_id": "1",
        "method": "POST",
        "url": CHAT_PATH,
        "body": {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "Hi"}]},
    }
).encode()
POLL_SECONDS = 0.05
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


class Answering:
    """A worker that ends every job of every lane at once: texts and vectors are made up, the rest is refused."""

    def __init__(self, settings: ApiSettings) -> None:
        self._jobs = JobStore(settings, ArtifactStore(settings.artifacts_url))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answering")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._jobs.close()

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            for status in self._jobs.lanes():
                while (claim := self._jobs.claim(status.lane, WORKER)) is not None:
                    self._end(claim)

    def _end(self, claim: Claim) -> None:
        spec = claim.job.spec
        result: Any = None
        if spec["task"] == "text-generation" and claim.job.kind == "inference":
            result = generated("Hello to you")
        elif spec["task"] == "feature-extraction":
            texts = [spec["inputs"]] if isinstance(spec["inputs"], str) else spec["inputs"]
            result = {"rows": [[0.5, -0.25]] * len(texts), "prompt_tokens": len(texts)}
        if result is None:
            failure = Failure.of(InvalidRequest("this worker only writes and embeds"))
            self._jobs.finish(claim.job.id, claim.fence, JobState.FAILED, failure=failure)
        else:
            self._jobs.finish(claim.job.id, claim.fence, JobState.SUCCEEDED, result=result)


@pytest.fixture
def service(api_settings: ApiSettings, valkey_url: str) -> Iterator[str]:
    with serving(api_settings) as url, Answering(api_settings):
        yield url


def things(service: str) -> dict[str, str]:
    """One of each thing that there may be, by the names of the parameters and fields that ask for it."""
    with client_of(service) as client:

        def made(path: str, **body: object) -> str:
            answer = client.post(path, json=body)
            assert answer.is_success, answer.text
            return str(answer.json()["id"])

        rows, calls = upload(client, LINE), upload(client, CALL, purpose="batch")
        adapter = add(client, GOOD).json()["id"]
        client.post(
            "/v1/load_lora_adapter", json={"lora_name": "support", "lora_path": adapter, "load_inplace": True}
        )
        return {
            "adapter": adapter,
            "batch_id": made("/v1/batches", input_file_id=calls, endpoint=CHAT_PATH, completion_window="24h"),
            "file": rows,
            "file_id": rows,
            "fine_tuning_job_id": made("/v1/fine_tuning/jobs", model=CHAT_MODEL, training_file=rows),
            "input_file_id": calls,
            "job_id": made("/v1/jobs", **CHAT),
            "lora_name": "support",
            "model": CHAT_MODEL,
            "name": lane("inference", CHAT_MODEL),
            "training_file": rows,
            "upload_id": made("/v1/uploads", **ANNOUNCED),
        }


def send_to_known(send: Callable[[Case], None], known: dict[str, str], case: Case) -> None:
    """Send the request for things that there are."""
    for part in (case.path_parameters, case.body):
        if isinstance(part, dict):
            part.update({name: known[name] for name in part.keys() & known.keys() if isinstance(part[name], str)})
    # One that is over at once is rightly answered with 504.
    case.headers.pop("x-tandem-deadline-seconds", None)
    send(case)


def faults_of(operation: Any, kind: GenerationMode, send: Callable[[Case], None]) -> list[str]:
    """What is wrong with an operation's answers; one fault ends its part."""

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=kind))
    def conforms(case: Case) -> None:
        send(case)

    try:
        conforms()
    except hypothesis.errors.Unsatisfiable:
        # Nothing can be wrong with a request that has no part.
        return []
    except FailureGroup as fault:
        return [f"{operation.label} ({kind.value}): {fault}"]
    return []


def test_every_answer_is_one_that_the_document_names(service: str) -> None:
    schema = schemathesis.openapi.from_dict(httpx.get(f"{service}/openapi.json").json())
    headers = {"Authorization": f"Bearer {API_KEY}"}

    def send(case: Case) -> None:
        case.call_and_validate(base_url=service, headers=headers, timeout=ANSWER_SECONDS, checks=CHECKS)

    faults: list[str] = []
    for found in schema.get_all_operations():
        operation, known = found.ok(), things(service)
        if operation.path == EMBEDDINGS_PATH:
            known["model"] = EMBEDDING_MODEL
        faults += faults_of(operation, GenerationMode.POSITIVE, partial(send_to_known, send, known))
        faults += faults_of(operation, GenerationMode.NEGATIVE, send)
    assert faults == []
