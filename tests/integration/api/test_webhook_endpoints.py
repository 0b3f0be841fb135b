"""Webhook endpoints through the unmodified OpenAI client, over real receivers: what is announced arrives, signed."""

import json
import queue
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import openai
import pytest
from openai.types.webhooks import FineTuningJobSucceededWebhookEvent, WebhookEndpointWithSecret
from openai.types.webhooks.unwrap_webhook_event import UnwrapWebhookEvent

from tandem.services import Services
from tandem.settings import ApiSettings
from tandem.webhooks import endpoints as endpoints_module
from tandem.webhooks.event_types import EVENT_TYPES, EventType
from tests.integration.api.api_server import API_KEY, sdk_of, serving, settings_for
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker
from tests.unit.webhooks.receiver import Answering, Receiver, Told, status
from tests.unit.webhooks.receiver import serving as receiving
from tests.valkey_server import ValkeyServer

SOON = 20.0
"""Seconds until a test gives up."""
POLL_SECONDS = 0.01
"""Nothing tells that a note was written."""
ROW = {"messages": [{"role": "user", "content": "Say ahoy."}, {"role": "assistant", "content": "ahoy"}]}


class Hook:
    """A user's receiver, and what it is told, as it comes."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._arrivals: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self.answer: Answering = status(204)
        receiver.answering = self._answering

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._receiver.port}/hook"

    @property
    def told(self) -> list[Told]:
        return self._receiver.told

    def wait(self) -> Told:
        """The next message, once it has been answered."""
        return self._arrivals.get(timeout=SOON)

    def _answering(self, handler: BaseHTTPRequestHandler) -> None:
        message_id = handler.headers["webhook-id"]
        told = next(one for one in reversed(self.told) if one.message_id == message_id)
        self.answer(handler)
        self._arrivals.put(told)


@pytest.fixture
def hook() -> Iterator[Hook]:
    with receiving() as receiver:
        yield Hook(receiver)


# A queue of this module's own, for an API with rules of its own.


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="module")
def api_settings(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> ApiSettings:
    """Of an API that may tell receivers on loopback, and has no secret for jobs' own webhooks."""
    settings = settings_for(valkey.url, tmp_path_factory.mktemp("artifacts"))
    return settings.model_copy(update={"webhook_private": True})


@pytest.fixture(scope="module")
def private_server(api_settings: ApiSettings) -> Iterator[str]:
    with serving(api_settings) as url:
        yield url


@pytest.fixture
def sdk(private_server: str, valkey_url: str) -> Iterator[openai.OpenAI]:
    with sdk_of(private_server) as sdk:
        yield sdk


def made(sdk: openai.OpenAI, hook: Hook, *types: EventType) -> WebhookEndpointWithSecret:
    # Our own types are not among those that the client knows.
    event_types: Any = list(types or EVENT_TYPES)
    return sdk.webhooks.create(name="alerts", url=hook.url, event_types=event_types)


def unwrapped(sdk: openai.OpenAI, told: Told, secret: str) -> UnwrapWebhookEvent:
    """The event, verified and read as a user of the client does."""
    return sdk.webhooks.unwrap(told.body, told.headers, secret=secret)


def noted(sdk: openai.OpenAI, endpoint_id: str) -> dict[str, Any]:
    """The endpoint once it says how its last delivery went: written just after the receiver has it."""
    deadline = time.monotonic() + SOON
    while True:
        fields: dict[str, Any] = sdk.webhooks.retrieve(endpoint_id).to_dict()
        if fields["delivery_note"] is not None:
            return fields
        assert time.monotonic() < deadline, "no delivery was noted in time"
        time.sleep(POLL_SECONDS)


def test_an_endpoint_is_made_read_changed_and_deleted(sdk: openai.OpenAI, hook: Hook) -> None:
    endpoint = made(sdk, hook, "batch.completed", "batch.completed")
    assert endpoint.signing_secret.startswith("whsec_")
    assert endpoint.event_types == ["batch.completed"]
    read = sdk.webhooks.retrieve(endpoint.id)
    assert read.signing_secret_hint == endpoint.signing_secret_hint
    assert read.signing_secret_hint is not None
    assert read.signing_secret_hint.endswith(endpoint.signing_secret[-4:])
    assert endpoint.signing_secret not in read.to_json()
    changed = sdk.webhooks.update(endpoint.id, name="night shift", event_types=["batch.failed"])
    assert (changed.name, changed.url, changed.event_types) == ("night shift", hook.url, ["batch.failed"])
    deleted = sdk.webhooks.delete(endpoint.id)
    assert (deleted.id, deleted.deleted) == (endpoint.id, True)
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.webhooks.retrieve(endpoint.id)
    assert unknown.value.code == "webhook_endpoint_not_found"


def test_endpoints_are_listed_page_by_page_newest_first(sdk: openai.OpenAI, hook: Hook) -> None:
    ids = [made(sdk, hook).id for _ in range(3)]
    assert [endpoint.id for endpoint in sdk.webhooks.list(limit=2)] == ids[::-1]
    with pytest.raises(openai.NotFoundError, match="`after`"):
        sdk.webhooks.list(after="we_none")


def test_the_types_of_events_are_told(sdk: openai.OpenAI) -> None:
    assert {"batch.completed", "response.failed", "fine_tuning.job.succeeded", "job.expired"} <= set(
        sdk.webhooks.event_types.list().data
    )


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"url": "ftp://example.com"}, "url", "must begin with"),
        ({"url": "http://169.254.169.254/"}, "url", "may not go to"),
        ({"event_types": []}, "event_types", "at least 1"),
        ({"event_types": ["eval.run.failed"]}, "event_types.0", "batch.completed"),
        ({"name": ""}, "name", "at least 1"),
    ],
)
def test_what_cannot_be_told_is_refused(
    sdk: openai.OpenAI, hook: Hook, changes: dict[str, Any], param: str, said: str
) -> None:
    fields: dict[str, Any] = {"name": "x", "url": hook.url, "event_types": ["batch.failed"]}
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        sdk.webhooks.create(**(fields | changes))
    assert caught.value.param == param


def test_private_receivers_are_refused_unless_the_operator_allows_them(
    api_settings: ApiSettings, valkey_url: str, hook: Hook
) -> None:
    with (
        serving(api_settings.model_copy(update={"webhook_private": False})) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0) as sdk,
        pytest.raises(openai.BadRequestError, match="https://"),
    ):
        sdk.webhooks.create(name="x", url=hook.url, event_types=["batch.failed"])


def test_one_owner_has_so_many_endpoints_and_no_more(
    sdk: openai.OpenAI, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints_module, "MAX_ENDPOINTS", 1)
    made(sdk, hook)
    with pytest.raises(openai.BadRequestError, match="limit is 1"):
        made(sdk, hook)


# What is told


def test_the_end_of_a_training_is_told_by_an_event_that_the_client_verifies_and_reads(
    sdk: openai.OpenAI, hook: Hook, worker: StandInWorker
) -> None:
    endpoint = made(sdk, hook, "fine_tuning.job.succeeded", "fine_tuning.job.failed")
    file = sdk.files.create(file=("rows.jsonl", json.dumps(ROW).encode()), purpose="fine-tune").id
    job = sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file=file)
    worker.succeed(worker.take(role="finetune"), {"adapter": "ft:new", "metrics": {}})
    event = unwrapped(sdk, hook.wait(), endpoint.signing_secret)
    assert isinstance(event, FineTuningJobSucceededWebhookEvent)
    assert (event.object, event.data.id) == ("event", job.id)
    assert hook.told[0].message_id == event.id
    fields = noted(sdk, endpoint.id)
    assert (fields["delivery_note"], fields["enabled"], fields["failing_since"]) == ("delivered 204", True, None)


def test_an_endpoint_is_told_what_it_asked_for_and_nothing_else(sdk: openai.OpenAI, hook: Hook) -> None:
    endpoint = made(sdk, hook, "job.cancelled")
    file = sdk.files.create(file=("rows.jsonl", json.dumps(ROW).encode()), purpose="fine-tune").id
    job = sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file=file, metadata={"order": "42"})
    sdk.fine_tuning.jobs.cancel(job.id)
    event = unwrapped(sdk, hook.wait(), endpoint.signing_secret).to_dict()
    assert event["type"] == "job.cancelled"
    data = event["data"]
    assert isinstance(data, dict)
    assert (data["id"], data["kind"], data["state"]) == (job.id, "finetune", "cancelled")
    assert data["metadata"] == {"order": "42"}
    noted(sdk, endpoint.id)
    assert len(hook.told) == 1


def test_an_event_that_is_announced_twice_is_told_once(sdk: openai.OpenAI, hook: Hook, services: Services) -> None:
    endpoint = made(sdk, hook, "batch.completed", "batch.failed")
    for _ in range(2):
        services.webhook_events.announce("default", "batch.completed", "batch_1")
    services.webhook_events.announce("default", "batch.failed", "batch_2")
    told = [hook.wait(), hook.wait()]
    events = {unwrapped(sdk, one, endpoint.signing_secret).type for one in told}
    assert events == {"batch.completed", "batch.failed"}


def test_a_failed_message_is_told_again_under_the_same_id(sdk: openai.OpenAI, hook: Hook, services: Services) -> None:
    endpoint = made(sdk, hook, "batch.completed")
    hook.answer = status(500)
    services.webhook_events.announce("default", "batch.completed", "batch_1")
    hook.wait()
    failing = noted(sdk, endpoint.id)
    assert failing["delivery_note"] == "try 1 of 10 failed: 500"
    assert failing["failing_since"] is not None
    hook.answer = status(200)
    hook.wait()
    first, second = hook.told
    assert (first.message_id, first.body) == (second.message_id, second.body)


def test_what_ended_while_no_api_ran_is_told_when_one_runs(
    api_settings: ApiSettings, own_valkey: ValkeyServer, hook: Hook
) -> None:
    """The end is noted with the job, in the same call of the queue's server, and not by the API."""
    settings = api_settings.model_copy(update={"redis_url": own_valkey.url})
    services = Services.connect(settings)
    services.webhook_endpoints.create(owner="o", name="x", url=hook.url, event_types=["job.cancelled"])
    spec = {"kind": "inference", "task": "text-generation", "model": "m", "inputs": "x"}
    job = services.jobs.submit(kind="inference", model="m", lane="tandem.inference.m", owner="o", spec=spec).job
    services.jobs.cancel(job.id)
    services.jobs.close()
    with serving(settings):
        assert json.loads(hook.wait().body)["data"]["id"] == job.id


def test_an_endpoint_that_wants_no_more_is_disabled_and_can_be_enabled_again(
    sdk: openai.OpenAI, hook: Hook, services: Services
) -> None:
    endpoint = made(sdk, hook, "batch.completed")
    hook.answer = status(410)
    services.webhook_events.announce("default", "batch.completed", "batch_1")
    hook.wait()
    disabled = noted(sdk, endpoint.id)
    assert (disabled["enabled"], disabled["disabled_at"] is not None) == (False, True)
    services.webhook_events.announce("default", "batch.completed", "batch_2")
    hook.answer = status(200)
    enabled = sdk.webhooks.update(endpoint.id, extra_body={"enabled": True}).to_dict()
    assert enabled["enabled"] is True
    services.webhook_events.announce("default", "batch.completed", "batch_3")
    assert json.loads(hook.wait().body)["data"] == {"id": "batch_3"}, "what came meanwhile is not told"


# Secrets


def test_a_new_secret_signs_and_the_old_one_besides_for_a_day_if_asked(
    sdk: openai.OpenAI, hook: Hook, services: Services
) -> None:
    first = made(sdk, hook, "batch.completed")
    second = sdk.webhooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=True)
    assert second.signing_secret != first.signing_secret
    services.webhook_events.announce("default", "batch.completed", "batch_1")
    told = hook.wait()
    for secret in (first.signing_secret, second.signing_secret):
        assert unwrapped(sdk, told, secret).type == "batch.completed"
    third = sdk.webhooks.rotate_secret(first.id)
    services.webhook_events.announce("default", "batch.completed", "batch_2")
    told = hook.wait()
    assert unwrapped(sdk, told, third.signing_secret).type == "batch.completed"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrapped(sdk, told, second.signing_secret)


# Tests of an endpoint


def test_a_test_sends_a_sample_now_and_tells_what_was_answered(sdk: openai.OpenAI, hook: Hook) -> None:
    endpoint = made(sdk, hook, "batch.completed")
    hook.answer = status(503)
    result = sdk.webhooks.test(endpoint.id, event_type="response.completed")
    assert (result.event_type, result.status_code, result.success) == ("response.completed", 503, True)
    assert unwrapped(sdk, hook.wait(), endpoint.signing_secret).type == "response.completed"
    assert sdk.webhooks.retrieve(endpoint.id).to_dict()["failing_since"] is None, "a test is no delivery"


def test_a_test_that_gets_no_answer_is_an_error_that_says_why(sdk: openai.OpenAI) -> None:
    with receiving() as receiver:
        endpoint = made(sdk, Hook(receiver))
    with pytest.raises(openai.BadRequestError, match="no answer") as caught:
        sdk.webhooks.test(endpoint.id, event_type="batch.completed")
    assert caught.value.param == "url"
