"""What nothing refers to is deleted, and what something refers to never is, whoever writes meanwhile."""

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem import artifacts as artifacts_module
from tandem.artifact_collection import Collected, collect, references_of
from tandem.artifacts import GRACE_SECONDS, ArtifactStore, StoredBlob
from tandem.errors import UnknownArtifact

DAY = 86_400.0
OLD = GRACE_SECONDS + 60


class LocalArtifacts:
    """A store on a local file system, whose files can be made older."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"
        self.store = ArtifactStore(self.url)

    def age(self, seconds: float) -> None:
        for path in self.root.rglob("*"):
            if path.is_file():
                then = path.stat().st_mtime - seconds
                os.utime(path, (then, then))

    def files(self, area: str) -> list[str]:
        return sorted(path.name for path in (self.root / area).rglob("*") if path.is_file())


class MemoryArtifacts:
    """A store on fsspec's file system in memory: like an object store, it cannot move a file in one step."""

    def __init__(self, name: str) -> None:
        self.root = f"/{name}"
        self.url = f"memory:/{self.root}"
        self.store = ArtifactStore(self.url)

    def age(self, seconds: float) -> None:
        for path, file in MemoryFileSystem.store.items():
            if path.startswith(self.root):
                file.modified -= timedelta(seconds=seconds)

    def files(self, area: str) -> list[str]:
        return sorted(Path(path).name for path in MemoryFileSystem.store if path.startswith(f"{self.root}/{area}/"))


Aged = LocalArtifacts | MemoryArtifacts


@pytest.fixture(params=["local", "memory"])
def aged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Aged]:
    if request.param == "local":
        yield LocalArtifacts(tmp_path)
        return
    yield MemoryArtifacts(name := uuid.uuid4().hex)
    forget(name)


def forget(name: str) -> None:
    """Take a store out of the memory that all file systems in memory share."""
    for path in [path for path in MemoryFileSystem.store if path.startswith(f"/{name}/")]:
        del MemoryFileSystem.store[path]
    MemoryFileSystem.pseudo_dirs[:] = [
        path for path in MemoryFileSystem.pseudo_dirs if not path.startswith(f"/{name}")
    ]


class Watched:
    """A module or file system whose every call is announced first."""

    def __init__(self, watched: Any, announce: Callable[[], None]) -> None:
        self._watched = watched
        self._announce = announce

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._watched, name)
        return partial(self._call, found) if callable(found) else found

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._announce()
        return function(*arguments, **options)


def watch(patch: pytest.MonkeyPatch, store: ArtifactStore, announce: Callable[[], None]) -> None:
    """Announce every call that stores in this module's hands make to their file systems."""
    patch.setattr(store, "_fs", Watched(store._fs, announce))
    patch.setattr(artifacts_module, "os", Watched(os, announce))
    patch.setattr(artifacts_module, "Path", lambda path: Watched(Path(path), announce))


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


# Random interleavings. Every call that a store makes to its file system is a place where another process may do
# something whole.

CONTENTS = (b"a", b"bb")


@dataclass
class Deployment:
    """A store, and the records that refer to its blobs; writers keep to the rule of artifact_collection.py."""

    aged: Aged
    interruptions: dict[int, str] = field(default_factory=dict)
    """Of the action that goes on: the number of its call to the file system → what somebody else does before it."""
    records: dict[bytes, int] = field(default_factory=dict)
    """Content that is referred to → its record's number."""
    ages: dict[bytes, float] = field(default_factory=dict)
    """Content → how long ago it was put or refreshed."""
    records_written: int = 0
    calls: int = 0
    """Of the action that goes on, to the file system."""
    busy: bool = False

    def run(self, action: str, interruptions: dict[int, str]) -> None:
        self.calls, self.interruptions = 0, interruptions
        self.do(action)

    def do(self, action: str) -> None:
        name, _, argument = action.partition(" ")
        match name:
            case "put":
                self.put(CONTENTS[int(argument)])
            case "refer":
                self.refer(CONTENTS[int(argument)])
            case "use":
                self.put(CONTENTS[int(argument)])
                self.refer(CONTENTS[int(argument)])
            case "refresh":
                self.refresh(CONTENTS[int(argument)])
            case "forget":
                self.records.pop(CONTENTS[int(argument)], None)
            case "collect":
                collect(self.aged.store, lambda: [digest_of(content) for content in list(self.records)])
            case "wait":
                self.aged.age(float(argument))
                self.ages = {content: age + float(argument) for content, age in self.ages.items()}
        for content in list(self.records):
            with self.may_be_forgotten_meanwhile(content):
                assert self.aged.store.read(digest_of(content)) == content

    def put(self, content: bytes) -> None:
        self.aged.store.put(content)
        self.ages[content] = 0.0

    def refresh(self, content: bytes) -> None:
        with self.may_be_forgotten_meanwhile(content):
            self.aged.store.refresh(digest_of(content))
            self.ages[content] = 0.0

    def refer(self, content: bytes) -> None:
        if self.ages.get(content, GRACE_SECONDS) < GRACE_SECONDS / 2:
            self.records_written += 1
            self.records.setdefault(content, self.records_written)

    @contextmanager
    def may_be_forgotten_meanwhile(self, content: bytes) -> Iterator[None]:
        """A blob may be missed only by somebody who looks for it while there is no record of it."""
        record = self.records.get(content)
        try:
            yield
        except UnknownArtifact:
            assert record is None or self.records.get(content) != record, f"{content!r} is referred to and lost"

    def interrupted(self) -> None:
        """Before a call to the file system: somebody else may come first, who is not interrupted in turn."""
        self.calls += 1
        if self.busy:
            return
        self.busy = True
        try:
            self.do(self.interruptions.get(self.calls, "look"))
        finally:
            self.busy = False


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


half = GRACE_SECONDS / 2
one = st.integers(0, len(CONTENTS) - 1)
others = st.sampled_from(["use", "use", "put", "refresh", "forget"])
interruption = st.one_of(st.builds("{} {}".format, others, one), st.just("collect"))
interruptions = st.dictionaries(st.integers(1, 24), interruption, max_size=3)
"""A collection of two blobs makes about twenty calls, a put six."""
Step = tuple[str, dict[int, str]]


@st.composite
def days(draw: st.DrawFn) -> list[Step]:
    """Blobs grow old, some of them unused; then what may meet a collection meets it, at any of its calls."""
    used = [(f"use {number}", {}) for number in range(len(CONTENTS)) if draw(st.booleans())]
    forgotten = [(f"forget {number}", {}) for number in range(len(CONTENTS)) if draw(st.booleans())]
    wait = (f"wait {draw(st.sampled_from([half - 60, half + 60, OLD, OLD]))}", {})
    writes = draw(st.lists(st.tuples(interruption, interruptions), max_size=2))
    return [*used, wait, *forgotten, *writes, ("collect", draw(interruptions)), ("collect", {})]


@pytest.mark.parametrize("kind", ["local", "memory"])
@settings(max_examples=150, deadline=None)
@given(taken=st.lists(days(), min_size=1, max_size=4))
def test_no_interleaving_loses_a_blob_that_is_referred_to(
    tmp_path_factory: pytest.TempPathFactory, kind: str, taken: list[list[Step]]
) -> None:
    name = uuid.uuid4().hex
    aged: Aged = LocalArtifacts(tmp_path_factory.mktemp("store")) if kind == "local" else MemoryArtifacts(name)
    deployment = Deployment(aged)
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, aged.store, deployment.interrupted)
        for day in taken:
            for action, met in day:
                deployment.run(action, met)
    forget(name)
