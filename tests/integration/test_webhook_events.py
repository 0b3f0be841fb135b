"""Events on their way to webhook endpoints: what is lost with a process, given up, or dropped. In the real store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.job_store import JobStore
from tandem.services import Services
from tandem.settings import Settings
from tandem.webhooks import endpoint_outbox
from tandem.webhooks.endpoint_outbox import EndpointOutbox
from tandem.webhooks.endpoints import Endpoint
from tandem.webhooks.outbox import Due, Verdict

OWNER = "o"
LANE = "tandem.inference.m"
URL = "https://receiver.example/hook"
LEASE_SECONDS = 60.0
AT_ONCE = 0.0
"""A lease or a pause that is over when it begins."""


@pytest.fixture
def services(valkey_url: str, tmp_path: Path) -> Iterator[Services]:
    services = Services.connect(Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}"))
    yield services
    services.jobs.close()


@pytest.fixture
def endpoint(services: Services) -> Endpoint:
    return services.webhook_endpoints.create(
        owner=OWNER, name="x", url=URL, event_types=["job.cancelled", "batch.failed"]
    )


@pytest.fixture
def outbox(services: Services) -> EndpointOutbox:
    return EndpointOutbox(services.jobs, services.webhook_endpoints, services.webhook_events)


def cancelled(jobs: JobStore, owner: str = OWNER) -> str:
    spec = {"kind": "inference", "task": "text-generation", "model": "m", "inputs": "x"}
    return jobs.cancel(jobs.submit(kind="inference", model="m", lane=LANE, owner=owner, spec=spec).job.id).id


def failed(outbox: EndpointOutbox, due: Due, *, outcome: str = "failed") -> None:
    verdict = Verdict("failed", "failed", AT_ONCE) if outcome == "failed" else Verdict("given up", "given up")
    outbox.settle(due.key, verdict)


def test_an_end_is_announced_to_the_endpoints_of_its_owner_alone(
    services: Services, endpoint: Endpoint, outbox: EndpointOutbox
) -> None:
    cancelled(services.jobs, owner="somebody else")
    job_id = cancelled(services.jobs)
    (due,) = outbox.take(10, LEASE_SECONDS)
    message = outbox.message(due.key)
    assert message is not None
    assert (message.url, job_id in message.body, due.tries) == (URL, True, 0)
    assert outbox.take(10, LEASE_SECONDS) == [], "it is leased"


def test_what_a_killed_process_was_announcing_is_announced_by_another(
    services: Services, endpoint: Endpoint, outbox: EndpointOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled(services.jobs)
    with monkeypatch.context() as patched:
        patched.setattr(services.webhook_events, "_announce_end", _dies)
        with pytest.raises(SystemExit):
            services.webhook_events.announce_ended_jobs(10, AT_ONCE)
    assert len(outbox.take(10, LEASE_SECONDS)) == 1


def _dies(*_: object) -> None:
    raise SystemExit


def test_what_a_killed_process_had_taken_is_taken_by_another(
    services: Services, endpoint: Endpoint, outbox: EndpointOutbox
) -> None:
    services.webhook_events.announce(OWNER, "batch.failed", "batch_1")
    first = outbox.take(10, AT_ONCE)
    assert outbox.take(10, AT_ONCE) == first


def test_a_job_that_cannot_be_told_holds_up_no_other(
    services: Services, endpoint: Endpoint, outbox: EndpointOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    spec = {"kind": "inference", "model": "m", "inputs": "without a task"}
    broken = services.jobs.submit(kind="inference", model="m", lane=LANE, owner=OWNER, spec=spec).job.id
    services.jobs.cancel(broken)
    cancelled(services.jobs)
    assert len(outbox.take(10, LEASE_SECONDS)) == 1
    assert f"the end of job {broken} cannot be announced" in caplog.text


def test_tries_are_counted_and_forgotten_with_their_message(
    services: Services, endpoint: Endpoint, outbox: EndpointOutbox
) -> None:
    services.webhook_events.announce(OWNER, "batch.failed", "batch_1")
    for tries in range(3):
        (due,) = outbox.take(10, LEASE_SECONDS)
        assert due.tries == tries
        failed(outbox, due)
    (due,) = outbox.take(10, LEASE_SECONDS)
    outbox.settle(due.key, Verdict("delivered", "delivered 200"))
    assert outbox.take(10, LEASE_SECONDS) == []
    assert services.jobs.redis.keys("tandem:webhook-tries:*") == []


def test_an_endpoint_that_has_failed_for_long_is_disabled_when_a_message_is_given_up(
    services: Services, endpoint: Endpoint, outbox: EndpointOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message that it would not take disables no endpoint that takes others."""
    store = services.webhook_endpoints
    for number, seconds in enumerate((endpoint_outbox.DISABLE_SECONDS, 0.0)):
        services.webhook_events.announce(OWNER, "batch.failed", f"batch_{number}")
        (due,) = outbox.take(10, LEASE_SECONDS)
        monkeypatch.setattr(endpoint_outbox, "DISABLE_SECONDS", seconds)
        failed(outbox, due, outcome="given up")
        is_disabled = store.get(endpoint.record.id).disabled_at is not None
        assert is_disabled == (seconds == 0.0)
    services.webhook_events.announce(OWNER, "batch.failed", "batch_3")
    assert outbox.take(10, LEASE_SECONDS) == []
    assert store.enable(endpoint.record.id, owner=OWNER).failing_since is None


@pytest.mark.parametrize("how", ["deleted", "disabled"])
def test_what_waits_for_an_endpoint_falls_away_with_it(
    services: Services, endpoint: Endpoint, outbox: EndpointOutbox, how: str
) -> None:
    for name in ("batch_1", "batch_2"):
        services.webhook_events.announce(OWNER, "batch.failed", name)
    first, second = outbox.take(10, AT_ONCE)
    if how == "deleted":
        services.webhook_endpoints.delete(endpoint.record.id, owner=OWNER)
    else:
        outbox.settle(first.key, Verdict("gone", "gone"))
    assert outbox.message(second.key) is None
    failed(outbox, first)
    assert services.jobs.redis.zrange("tandem:messages", 0, -1) == ([] if how == "deleted" else [first.key])


def test_nothing_is_kept_for_owners_without_endpoints(services: Services) -> None:
    cancelled(services.jobs)
    services.webhook_events.announce(OWNER, "batch.failed", "batch_1")
    kept = services.jobs.redis.keys("tandem:*")
    assert not any("webhook" in key or key in ("tandem:announcements", "tandem:messages") for key in kept)


def test_a_forgotten_job_leaves_no_announcement(
    services: Services, endpoint: Endpoint, valkey_url: str, tmp_path: Path
) -> None:
    settings = Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}", result_seconds=0.001)
    short = Services.connect(settings)
    cancelled(short.jobs)
    while not short.jobs.prune():
        pass  # a millisecond
    short.jobs.close()
    assert services.jobs.redis.exists("tandem:announcements") == 0
