"""A stranger's zip file: what is taken from it, and what is refused before anything is written."""

import contextlib
import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem.adapter_archive import MAX_ENTRIES, pack, unpack
from tandem.errors import InvalidRequest
from tests.unit.contract.peft_folders import adapter_files, write, zipped

LIMIT = 64 * 1024
TAKEN = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[bytes], Path]:
    """Unpacks an archive into a new folder, and gives the folder."""

    def unpack_it(content: bytes) -> Path:
        archive, folder = tmp_path / "archive.zip", tmp_path / "folder"
        archive.write_bytes(content)
        folder.mkdir()
        unpack(archive, folder, limit=LIMIT)
        return folder

    return unpack_it


def entry(name: str, content: bytes = b"x", **changes: int) -> bytes:
    """A good archive with one more entry, whose ZipInfo has `changes`."""
    target = io.BytesIO(zipped(adapter_files()))
    with zipfile.ZipFile(target, "a") as archive:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        for field, value in changes.items():
            setattr(info, field, value)
        archive.writestr(info, content)
    return target.getvalue()


def many_entries() -> bytes:
    return zipped({f"{number}.txt": b"" for number in range(MAX_ENTRIES + 1)})


def lying_about_its_entries() -> bytes:
    """Its end says one entry where the directory has a thousand."""
    content = bytearray(zipped({f"{number}.txt": b"" for number in range(1000)}))
    content[-14:-10] = b"\1\0\1\0"
    return bytes(content)


def encrypted() -> bytes:
    """The flags of the first entry in the directory say so."""
    content = bytearray(zipped(adapter_files()))
    flags = content.index(b"PK\x01\x02") + 8
    content[flags] |= 1
    return bytes(content)


def of_zeros() -> bytes:
    return zipped(adapter_files() | {"adapter_model.safetensors": bytes(100 * LIMIT)})


def with_zip64() -> bytes:
    content = zipped(adapter_files())
    return content[:-22] + b"PK\x06\x07" + bytes(16) + content[-22:]


def test_the_known_files_are_taken_and_the_others_of_a_peft_folder_left(unpacked: Callable[[bytes], Path]) -> None:
    files = adapter_files() | {"tokenizer.json": b"{}", "config.json": b"{}"}
    folder = unpacked(zipped(files))
    assert {path.name for path in folder.iterdir()} == TAKEN | {"config.json"}
    assert all(path.read_bytes() == files[path.name] for path in folder.iterdir())


def test_the_files_may_lie_in_one_folder(unpacked: Callable[[bytes], Path]) -> None:
    folder = unpacked(zipped({"my-adapter/": b""} | {f"my-adapter/{name}": b for name, b in adapter_files().items()}))
    assert {path.name for path in folder.iterdir()} == TAKEN


def test_what_is_packed_here_is_unpacked_there(tmp_path: Path, unpacked: Callable[[bytes], Path]) -> None:
    target = io.BytesIO()
    files = adapter_files() | {"optimizer.pt": b"a pickle", "notes.txt": b"mine"}
    pack(write(tmp_path / "trained", files), target)
    folder = unpacked(target.getvalue())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: files[name] for name in TAKEN}


def test_a_folder_that_is_no_adapters_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"has no adapter_config\.json and no adapter_model\.safetensors"):
        pack(write(tmp_path / "other", {"model.safetensors": b""}), io.BytesIO())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (entry("/etc/cron.d/job"), "leaves the folder"),
        (entry("../adapter_config.json"), "leaves the folder"),
        (entry("a/../../b.json"), "leaves the folder"),
        (entry("..\\config.json"), "leaves the folder"),
        (entry("C:config.json"), "leaves the folder"),
        (entry("config.json", external_attr=(stat.S_IFLNK | 0o777) << 16), "is a link"),
        (entry("config.json", compress_type=zipfile.ZIP_BZIP2), "method other than deflate"),
        (entry("config.json", compress_type=zipfile.ZIP_LZMA), "method other than deflate"),
        (entry("sub/config.json"), "in several folders"),
        (entry("sub/adapter_config.json"), "in it twice"),
        (entry("adapter_model.bin"), "may be a pickle"),
        (entry("training_args.bin"), "may be a pickle"),
        (entry("run.sh"), "is no file of a PEFT folder"),
        (entry("config.json", b" " * (2**20 + 1)), "the limit is 1048576"),
        (encrypted(), "is encrypted"),
        (of_zeros(), f"has {100 * LIMIT} bytes; the limit is {LIMIT}"),
        (many_entries(), "more than 64 files"),
        (lying_about_its_entries(), "more than 64 files"),
        (with_zip64(), "more than 64 files or 4 GB"),
        (zipped({"adapter_config.json": b"{}"}), r"has no adapter_model\.safetensors"),
        (zipped({"adapter_model.safetensors": b""}), r"has no adapter_config\.json"),
        (zipped(adapter_files()) + b"a comment", "does not end as a zip file"),
        (zipped(adapter_files())[:-30], "does not end as a zip file"),
        (b"", "does not end as a zip file"),
        (b"PK\x05\x06", "does not end as a zip file"),
        (zipped({}), r"has no adapter_config\.json"),
    ],
)
def test_an_archive_is_refused_before_anything_is_written(
    content: bytes, reason: str, unpacked: Callable[[bytes], Path], tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        unpacked(content)
    assert refused.value.param == "file"
    assert list((tmp_path / "folder").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"archive.zip", "folder"}


def test_a_broken_content_is_refused(unpacked: Callable[[bytes], Path]) -> None:
    content = bytearray(zipped(adapter_files(), method=zipfile.ZIP_STORED))
    content[content.index(b"LORA")] ^= 1
    with pytest.raises(InvalidRequest, match="no whole zip file"):
        unpacked(bytes(content))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), wrong=st.binary(min_size=1, max_size=8))
def test_any_damage_is_a_refusal_or_none_at_all(
    place: int, wrong: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes are wrong, nobody gets another error, and nothing is written but files of an adapter."""
    content = bytearray(zipped(adapter_files()))
    place %= len(content)
    content[place : place + len(wrong)] = wrong
    root = tmp_path_factory.mktemp("damaged")
    (root / "archive.zip").write_bytes(content)
    (root / "folder").mkdir()
    with contextlib.suppress(InvalidRequest):
        unpack(root / "archive.zip", root / "folder", limit=LIMIT)
    assert {path.name for path in (root / "folder").iterdir()} <= TAKEN | {"config.json"}
    assert sum(path.stat().st_size for path in (root / "folder").iterdir()) <= LIMIT + 2 * 2**20
