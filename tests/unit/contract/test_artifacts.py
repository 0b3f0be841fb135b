"""Artifacts appear whole or not at all, once; documents are published once."""

import threading
from pathlib import Path

import pytest

from tandem.artifacts import ArtifactStore
from tandem.errors import PayloadTooLarge, UnknownArtifact


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path}")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_same_content_is_one_blob(store: ArtifactStore, tmp_path: Path) -> None:
    assert store.put(b"abc") == store.put_stream([b"a", b"bc"])
    assert store.read(store.put(b"abc").digest) == b"abc"
    assert len(_files(tmp_path)) == 1


def test_a_stream_beyond_the_limit_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(PayloadTooLarge, match="limit of 10 bytes"):
        store.put_stream([b"12345", b"67890", b"1"], limit=10)
    assert _files(tmp_path) == []


def test_a_broken_stream_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    def broken() -> object:
        yield b"half"
        raise ConnectionError("the client went away")

    with pytest.raises(ConnectionError):
        store.put_stream(broken())  # type: ignore[arg-type]  # a generator of bytes
    assert _files(tmp_path) == []


def test_an_unknown_digest_is_an_error_of_ours(store: ArtifactStore) -> None:
    with pytest.raises(UnknownArtifact):
        store.read("0" * 64)


def test_of_many_that_publish_at_once_one_wins(store: ArtifactStore) -> None:
    """A repeated attempt finds what was published; nobody sees half of it."""
    won: list[str] = []
    start = threading.Barrier(8)

    def publish(name: str) -> None:
        start.wait()
        if store.publish("adapters/x.json", name.encode() * 10_000):
            won.append(name)

    threads = [threading.Thread(target=publish, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.published("adapters/x.json") == won[0].encode() * 10_000


def test_a_retracted_document_is_gone(store: ArtifactStore) -> None:
    store.publish("adapters/x.json", b"{}")
    store.retract("adapters/x.json")
    assert store.published("adapters/x.json") is None


def test_any_fsspec_file_system_serves() -> None:
    """The same calls on another file system: here fsspec's own in memory."""
    store = ArtifactStore("memory://tandem-test")
    artifact = store.put(b"content")
    assert (artifact.size, store.read(artifact.digest)) == (7, b"content")
    assert store.publish("d.json", b"1")
    assert store.published("d.json") == b"1"
