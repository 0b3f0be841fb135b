"""The store of batches over a real server: who sees a batch, who drives it, and what is kept."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.batch import TRANSITIONS, Batch, Shard, ShardEnd
from tandem.batch_store import BatchStore
from tandem.errors import Conflict, IdempotencyConflict, Superseded, UnknownBatch
from tandem.files import StoredFile, UploadKey
from tandem.job_store import Share
from tandem.services import Services
from tandem.settings import Settings

LEASE_SECONDS = 30.0


@pytest.fixture
def services(valkey_url: str, tmp_path: Path) -> Iterator[Services]:
    services = Services.connect(Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}"))
    yield services
    services.jobs.close()


@pytest.fixture
def store(services: Services) -> BatchStore:
    return services.batches


@pytest.fixture
def file(services: Services) -> StoredFile:
    return services.files.create([b"rows"], filename="rows.jsonl", purpose="batch", owner="a", limit=100)


def create(store: BatchStore, file: StoredFile, *, owner: str = "a", key: str | None = None, window="24h") -> Batch:
    return store.create(
        owner=owner,
        share=Share(),
        endpoint="/v1/chat/completions",
        file=file,
        completion_window=window,
        key=None if key is None else UploadKey(key, 60.0),
    )


def end(store: BatchStore, batch: Batch, status: str = "failed") -> Batch:
    return store.update(batch, lambda current: current.model_copy(update={"status": status, "ended_at": store.now()}))


def shard(number: int = 0, **fields) -> Shard:
    return Shard(number=number, task="text-generation", model="m", rows="d", first=1, count=1, **fields)


def test_a_batch_is_its_owners(store: BatchStore, file: StoredFile) -> None:
    batch = create(store, file)

    assert store.get(batch.id, "a") == batch
    assert batch.expires_at - batch.created_at == pytest.approx(86_400.0)
    assert store.list("b") == []
    for call in (store.get, store.cancel):
        with pytest.raises(UnknownBatch):
            call(batch.id, "b")


def test_the_same_request_under_a_key_is_the_same_batch(store: BatchStore, file: StoredFile) -> None:
    first = create(store, file, key="k")

    assert create(store, file, key="k").id == first.id
    assert create(store, file, owner="b", key="k").id != first.id
    with pytest.raises(IdempotencyConflict):
        create(store, file, key="k", window="12h")


def test_lists_go_on_behind_a_batch_newest_first(store: BatchStore, file: StoredFile) -> None:
    made = [create(store, file).id for _ in range(3)]
    newest_first = made[::-1]

    assert [batch.id for batch in store.list("a", limit=2)] == newest_first[:2]
    assert [batch.id for batch in store.list("a", after=newest_first[1])] == newest_first[2:]
    with pytest.raises(UnknownBatch, match="not in this list"):
        store.list("b", after=made[0])


def test_one_clerk_at_a_time_drives_a_batch(store: BatchStore, file: StoredFile) -> None:
    """Until its lease is over; then another takes it, and the first one's writes are refused."""
    create(store, file)
    first = store.take(LEASE_SECONDS)
    assert first is not None
    assert store.take(LEASE_SECONDS) is None

    store.renew(first, 0.0)
    second = store.take(LEASE_SECONDS)
    assert second is not None
    assert (second.id, second.fence) == (first.id, first.fence + 1)
    for write in (lambda: store.renew(first, 1.0), lambda: end(store, first), lambda: store.give_back(first)):
        with pytest.raises(Superseded):
            write()
    assert store.get(first.id, "a").status == "validating"


def test_what_is_given_back_is_taken_at_once(store: BatchStore, file: StoredFile) -> None:
    create(store, file)
    held = store.take(LEASE_SECONDS)
    assert held is not None
    store.give_back(held)
    assert store.take(LEASE_SECONDS) is not None


def test_an_ended_batch_is_taken_until_it_is_let_go(store: BatchStore, file: StoredFile) -> None:
    """A clerk that dies between the end and telling of it has a successor."""
    create(store, file)
    held = store.take(0.0)
    assert held is not None
    ended = end(store, held)

    again = store.take(0.0)
    assert again is not None
    assert again.status == "failed"
    store.let_go(ended)
    assert store.take(LEASE_SECONDS) is None
    assert store.get(ended.id, "a").status == "failed"


def test_cancelling_is_asked_once_and_only_before_the_end(store: BatchStore, file: StoredFile) -> None:
    batch = create(store, file)
    asked = store.cancel(batch.id, "a")
    assert asked.status == "cancelling"
    assert store.cancel(batch.id, "a").cancelling_at == asked.cancelling_at

    other = create(store, file)
    held = next(taken for taken in iter(lambda: store.take(LEASE_SECONDS), None) if taken.id == other.id)
    end(store, held)
    with pytest.raises(Conflict, match="is failed"):
        store.cancel(other.id, "a")


def test_a_status_that_cannot_follow_is_an_error_of_the_program(store: BatchStore, file: StoredFile) -> None:
    create(store, file)
    held = store.take(LEASE_SECONDS)
    assert held is not None
    with pytest.raises(AssertionError):
        end(store, held, "completed")


def test_every_status_leads_to_an_end() -> None:
    def ends(status) -> bool:
        return not TRANSITIONS[status] or all(ends(after) for after in TRANSITIONS[status])

    assert all(ends(status) for status in TRANSITIONS)


def test_an_unfinished_batch_refers_to_all_that_it_reads_and_has_made(store: BatchStore, file: StoredFile) -> None:
    batch = create(store, file)
    held = store.take(LEASE_SECONDS)
    assert held is not None
    shards = [
        shard(0, media=("picture",)),
        shard(1, end=ShardEnd(outcome="succeeded", parts=("part-0", "part-1"))),
    ]
    held = store.update(held, lambda current: current.model_copy(update={"rejected": ("refused",)}), shards)

    assert store.shards(batch.id) == shards
    assert set(store.artifact_references()) == {file.digest, "refused", "d", "picture", "part-0", "part-1"}
    end(store, held)
    assert list(store.artifact_references()) == []
    assert store.shards(batch.id) == []


def test_an_ended_batch_is_forgotten_in_the_end(
    store: BatchStore, services: Services, file: StoredFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.batch_store.KEEP_SECONDS", 0.001)
    batch = create(store, file)
    held = store.take(LEASE_SECONDS)
    assert held is not None
    store.let_go(end(store, held))
    while services.jobs.redis.exists(f"tandem:batch:{batch.id}"):
        pass  # for a millisecond: the server forgets it by itself
    with pytest.raises(UnknownBatch):
        store.get(batch.id, "a")

    store.forget_expired()
    assert list(services.jobs.redis.scan_iter("tandem:batch*")) == []
