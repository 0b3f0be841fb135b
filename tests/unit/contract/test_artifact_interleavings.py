"""Random interleavings of writers and a collection lose no blob that is referred to.

Every call that a store makes to its file system is a place where another process may do something whole.
"""

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.artifact_collection import collect
from tandem.artifacts import GRACE_SECONDS
from tandem.errors import UnknownArtifact
from tests.unit.contract.aged_artifacts import Aged, LocalArtifacts, MemoryArtifacts, forget, watch

OLD = GRACE_SECONDS + 60
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
