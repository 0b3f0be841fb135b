"""What nothing refers to is deleted, and what something refers to never is, whoever writes meanwhile."""

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tandem.artifact_collection import Collected, collect, references_of
from tandem.artifacts import GRACE_SECONDS, ArtifactStore, StoredBlob
from tandem.errors import UnknownArtifact
from tests.unit.contract.aged_artifacts import Aged, LocalArtifacts, MemoryArtifacts, Watched, forget, watch

DAY = 86_400.0
OLD = GRACE_SECONDS + 60


@pytest.fixture(params=["local", "memory"])
def aged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Aged]:
    if request.param == "local":
        yield LocalArtifacts(tmp_path)
        return
    yield MemoryArtifacts(name := uuid.uuid4().hex)
    forget(name)


def nothing() -> list[str]:
    return []


class TestWhatIsCollected:
    def test_an_old_blob_that_nothing_refers_to_is_deleted(self, aged: Aged) -> None:
        kept, lost = aged.store.put(b"kept").digest, aged.store.put(b"lost").digest
        aged.age(OLD)
        assert collect(aged.store, lambda: [kept]) == Collected(deleted=1, bytes=4, kept=1)
        assert aged.files("blobs") == [kept]
        assert aged.store.read(kept) == b"kept"
        assert lost not in aged.files("blobs")

    def test_a_young_blob_is_not_touched(self, aged: Aged) -> None:
        """Its record may still be on the way."""
        digest = aged.store.put(b"young").digest
        aged.age(GRACE_SECONDS - 60)
        assert collect(aged.store, nothing) == Collected(deleted=0, bytes=0, kept=1)
        assert aged.store.read(digest) == b"young"

    def test_putting_the_same_content_again_makes_it_young(self, aged: Aged) -> None:
        digest = aged.store.put(b"twice").digest
        aged.age(OLD)
        aged.store.put(b"twice")
        assert collect(aged.store, nothing).deleted == 0
        assert aged.store.read(digest) == b"twice"

    def test_refreshing_makes_it_young_and_tells_when_it_is_gone(self, aged: Aged) -> None:
        digest = aged.store.put(b"again").digest
        aged.age(OLD)
        aged.store.refresh(digest)
        assert collect(aged.store, nothing).deleted == 0
        with pytest.raises(UnknownArtifact):
            aged.store.refresh("0" * 64)

    def test_an_object_is_not_written_again_while_it_is_young_enough(self) -> None:
        """Writing it again costs an object store the whole content; half of the grace is left to refer to it."""
        aged = MemoryArtifacts(name := uuid.uuid4().hex)
        aged.store.put(b"object")
        aged.age(GRACE_SECONDS / 2 - 60)
        (before,) = aged.store.blobs()
        aged.store.put(b"object")
        assert [blob.modified for blob in aged.store.blobs()] == [before.modified]
        aged.age(120)
        aged.store.put(b"object")
        (after,) = aged.store.blobs()
        assert after.modified > before.modified
        forget(name)

    def test_what_a_broken_write_left_behind_goes_too(self, aged: Aged) -> None:
        aged.store.put(b"x")
        aged.store._fs.pipe_file(f"{aged.store._root}/incoming/broken", b"half")
        assert collect(aged.store, nothing).deleted == 0
        aged.age(OLD)
        aged.store.put(b"x")
        assert collect(aged.store, nothing) == Collected(deleted=1, bytes=4, kept=1)
        assert aged.files("incoming") == []

    def test_a_dry_run_tells_the_same_and_deletes_nothing(self, aged: Aged) -> None:
        aged.store.put(b"lost")
        aged.age(OLD)
        assert collect(aged.store, nothing, dry_run=True) == Collected(deleted=1, bytes=4, kept=0)
        assert collect(aged.store, nothing) == Collected(deleted=1, bytes=4, kept=0)
        assert aged.files("blobs") == []

    def test_an_empty_store_is_no_error(self, aged: Aged) -> None:
        assert collect(aged.store, nothing) == Collected(deleted=0, bytes=0, kept=0)

    def test_documents_are_none_of_its_business(self, aged: Aged) -> None:
        aged.store.publish("adapters/a.json", b"{}")
        aged.age(100 * DAY)
        collect(aged.store, nothing)
        assert list(aged.store.documents("adapters")) == [b"{}"]


class TestSafety:
    def test_nothing_is_deleted_when_the_references_cannot_be_read(self, aged: Aged) -> None:
        digest = aged.store.put(b"x").digest
        aged.age(OLD)

        def broken() -> Iterator[str]:
            yield "0" * 64
            raise ConnectionError("the server went away")

        with pytest.raises(ConnectionError):
            collect(aged.store, broken)
        assert aged.files("blobs") == [digest]

    def test_references_are_read_after_the_candidates_were_listed(self, aged: Aged) -> None:
        """A blob that is put while they are read is no candidate."""
        aged.store.put(b"old")
        aged.age(OLD)

        def reading() -> list[str]:
            aged.store.put(b"new")
            return []

        assert collect(aged.store, reading).deleted == 1
        assert len(aged.files("blobs")) == 1

    def test_what_is_referred_to_after_the_listing_counts(self, aged: Aged, monkeypatch: pytest.MonkeyPatch) -> None:
        digest = aged.store.put(b"old").digest
        aged.age(OLD)
        records: list[str] = []
        listed = list(aged.store.blobs())

        def blobs() -> Iterator[StoredBlob]:
            yield from listed
            records.append(digest)

        monkeypatch.setattr(aged.store, "blobs", blobs)
        assert collect(aged.store, lambda: records) == Collected(deleted=0, bytes=0, kept=1)

    def test_a_blob_that_is_put_again_before_its_deletion_stays(self, aged: Aged) -> None:
        digest = aged.store.put(b"again").digest
        aged.age(OLD)

        def reading() -> list[str]:
            aged.store.put(b"again")
            return []

        assert collect(aged.store, reading) == Collected(deleted=0, bytes=0, kept=1)
        assert aged.store.read(digest) == b"again"
        assert (aged.files("blobs"), aged.files("trash")) == ([digest], [])

    def test_a_collection_that_takes_too_long_stops_deleting(self, aged: Aged) -> None:
        """What it knows of the references is too old then."""
        aged.store.put(b"a")
        aged.store.put(b"b")
        aged.age(OLD)
        # The start, the reading of the references, the first candidate, the second.
        times = iter([0.0, 0.0, 1.0, GRACE_SECONDS / 4])
        start = time.time()
        found = collect(aged.store, nothing, now=lambda: start + next(times))
        assert (found.deleted, found.kept) == (1, 1)

    def test_a_grace_shorter_than_the_writers_reckon_with_is_refused(self, aged: Aged) -> None:
        with pytest.raises(ValueError, match="at least as long"):
            collect(aged.store, nothing, grace_seconds=GRACE_SECONDS - 1)

    def test_a_blob_in_the_trash_is_still_read_and_comes_back_when_something_refers_to_it(self, aged: Aged) -> None:
        """A collector was killed in the midst of its work, or an object was put again as it was deleted."""
        digest = aged.store.put(b"trashed").digest
        aged.store._fs.makedirs(f"{aged.store._root}/trash", exist_ok=True)
        aged.store._fs.mv(aged.store._path(digest), aged.store._trash(digest))
        assert (aged.store.exists(digest), aged.store.read(digest)) == (True, b"trashed")
        aged.age(OLD)
        collect(aged.store, lambda: [digest])
        assert (aged.files("blobs"), aged.files("trash")) == ([digest], [])

    def test_the_trash_is_emptied_after_one_more_grace(self) -> None:
        aged = MemoryArtifacts(name := uuid.uuid4().hex)
        digest = aged.store.put(b"object").digest
        aged.age(OLD)
        assert collect(aged.store, nothing).deleted == 1
        aged.age(GRACE_SECONDS - 60)
        collect(aged.store, nothing)
        assert aged.store.read(digest) == b"object"
        aged.age(120)
        collect(aged.store, nothing)
        assert not aged.store.exists(digest)
        forget(name)

    def test_every_referrer_is_asked(self) -> None:
        @dataclass
        class Records:
            digests: list[str]

            def artifact_references(self) -> list[str]:
                return self.digests

        assert list(references_of(Records(["a", "b"]), Records([]), Records(["c"]))()) == ["a", "b", "c"]


def test_a_reader_does_not_miss_a_blob_that_is_moved_back_while_it_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector moves it aside, sees that it was put meanwhile, and moves it back; at every moment of this a
    reader finds it, and one that looked in the wrong place each time finds it in the end."""
    aged = LocalArtifacts(tmp_path)
    digest = aged.store.put(b"read me").digest
    blob, trash = Path(aged.store._path(digest)), Path(aged.store._trash(digest))
    trash.parent.mkdir()
    moves = iter([lambda: blob.replace(trash), lambda: trash.replace(blob), lambda: None])
    monkeypatch.setattr(aged.store, "_fs", Watched(aged.store._fs, lambda: next(moves)()))
    assert aged.store.read(digest) == b"read me"
    with pytest.raises(StopIteration):
        next(moves)


@pytest.mark.parametrize("moment", range(1, 12))
def test_whoever_puts_a_blob_at_any_moment_of_its_deletion_has_it(
    aged: Aged, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """One put before each of the deletion's calls to the file system in turn."""
    digest = aged.store.put(b"again").digest
    aged.age(OLD)
    other, calls = ArtifactStore(aged.url), 0

    def announce() -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            other.put(b"again")

    oldest_kept = time.time() - GRACE_SECONDS
    with monkeypatch.context() as patch:
        watch(patch, aged.store, announce)
        aged.store.discard(digest, older_than=oldest_kept)
        if calls < moment:
            other.put(b"again")
    assert other.read(digest) == b"again"
    aged.age(GRACE_SECONDS / 2 - 60)
    collect(other, lambda: [digest])
    assert aged.files("blobs") == [digest]


def test_a_blob_that_is_moved_away_while_its_time_is_changed_is_put_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel looks a name up first and changes the file's time then; the collector may move and look between the
    two. The writer's change then comes too late to be seen."""
    aged = LocalArtifacts(tmp_path)
    digest = aged.store.put(b"again").digest
    aged.age(OLD)
    real_utime = os.utime

    def utime(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        monkeypatch.undo()
        assert aged.store.discard(digest, older_than=time.time() - GRACE_SECONDS)
        real_utime(descriptor)
        os.close(descriptor)

    monkeypatch.setattr(os, "utime", utime)
    aged.store.put(b"again")
    assert aged.store.read(digest) == b"again"
