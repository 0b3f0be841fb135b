"""The zip file in which a PEFT folder is sent: unpacked within bounds, and nothing taken but known files.

A stranger's archive may name paths outside the folder, hold links, claim millions of files, or unpack to a thousand
times its size. Each is refused by name before anything is written.
"""

import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tandem.errors import InvalidRequest
from tandem.specs.peft_config import CONFIG_FILE, MODEL_CONFIG_FILE, WEIGHTS_FILE

PIECE_BYTES = 2**20
"""Unpacked at once."""
TAKEN = (CONFIG_FILE, WEIGHTS_FILE, MODEL_CONFIG_FILE)
IGNORED = frozenset(
    {
        "README.md",
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tandem_manifest.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""What PEFT, a Trainer and our own download write beside them: the base model has these, or nobody reads them."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
"""Ends of names of files whose reading may run code."""

MAX_ENTRIES = 64
"""Files and folders in an archive: a PEFT folder has three to fifteen."""
MAX_JSON_BYTES = 2**20
"""A config has some KB, one with thousands of labels some hundred."""
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, UnicodeDecodeError)
"""What zipfile raises of an archive whose bytes are not what they should be."""
END = struct.Struct("<4s4H2LH")
"""The end of a zip file (APPNOTE 4.3.16): signature, two numbers of disks, entries here and in all, bytes and place
of the directory, length of the comment."""
END_SIGNATURE = b"PK\x05\x06"
ZIP64_SIGNATURE = b"PK\x06\x07"
ZIP64_LOCATOR_BYTES = 20


def pack(folder: Path, target: BinaryIO) -> None:
    """Write the files of TAKEN that a PEFT folder has as a zip file. Raises InvalidRequest (param `folder`)."""
    try:
        missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
        if missing:
            raise InvalidRequest(
                f"{folder} has no {' and no '.join(missing)}; give a folder that PEFT's `save_pretrained` wrote",
                param="folder",
            )
        # Stored as they are: weights do not get smaller.
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name in TAKEN:
                if (folder / name).is_file():
                    archive.write(folder / name, name)
    except OSError as error:
        raise InvalidRequest(f"the folder {folder} cannot be read: {error.strerror}", param="folder") from error


def unpack(archive: Path, folder: Path, *, limit: int) -> None:
    """Write the files of TAKEN that are in a zip file to `folder`, which is there and empty.

    They may lie at the archive's root or in one folder. Raises InvalidRequest (param `file`), naming what is at
    fault: no zip file, an entry that is not safe or not known, content of more than `limit` bytes, a lack of
    CONFIG_FILE or WEIGHTS_FILE.
    """
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as opened:
            for name, entry in _chosen(opened.infolist(), limit).items():
                with opened.open(entry) as source, (folder / name).open("wb") as target:
                    while chunk := source.read(PIECE_BYTES):
                        target.write(chunk)
    except BROKEN as error:
        raise _refusal(f"it is no whole zip file ({error})") from error


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the adapter's archive is refused: {reason}", param="file")


def _check_directory(archive: Path) -> None:
    """Refuse an archive by the length of its directory, before zipfile makes an object of each entry."""
    with archive.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - END.size - ZIP64_LOCATOR_BYTES, 0))
        tail = file.read()
    end = tail[-END.size :]
    if not end.startswith(END_SIGNATURE) or len(end) < END.size:
        raise _refusal("it does not end as a zip file without a comment does; pack the folder with `zip -r`")
    entries = END.unpack(end)[4]
    if tail.startswith(ZIP64_SIGNATURE) or entries > MAX_ENTRIES:
        raise _refusal(f"it has more than {MAX_ENTRIES} files or 4 GB; pack the PEFT folder alone")


def _chosen(entries: list[zipfile.ZipInfo], limit: int) -> dict[str, zipfile.ZipInfo]:
    """The entries of TAKEN by their names in the folder; all others are checked too."""
    found: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for entry in entries:
        if len(entries) > MAX_ENTRIES:
            raise _refusal(f"it has more than {MAX_ENTRIES} files")
        _check_safe(entry)
        if entry.is_dir():
            continue
        path = PurePosixPath(entry.filename)
        folders.add(str(path.parent))
        if path.name in found:
            raise _refusal(f"{path.name} is in it twice")
        _check_known(entry, path.name)
        found[path.name] = entry
    if len(folders) > 1 or any("/" in folder for folder in folders):
        raise _refusal(f"its files lie in several folders ({', '.join(sorted(folders)[:3])}); pack one PEFT folder")
    chosen = {name: found[name] for name in TAKEN if name in found}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in chosen:
            raise _refusal(f"it has no {name}, which PEFT's `save_pretrained` writes")
    for name, entry in chosen.items():
        allowed = limit if name == WEIGHTS_FILE else MAX_JSON_BYTES
        if entry.file_size > allowed:
            raise _refusal(f"{name} has {entry.file_size} bytes; the limit is {allowed}")
    return chosen


def _check_safe(entry: zipfile.ZipInfo) -> None:
    # zipfile cuts a name at a NUL: what it was before says what its maker wanted.
    name = entry.orig_filename
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or any(sign in name for sign in "\\:\0"):
        raise _refusal(f"{name[:200]!r} is a path that leaves the folder or has a sign that not every system knows")
    if entry.header_offset < 0:
        raise _refusal(f"{name[:200]!r} lies before its beginning")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise _refusal(f"{name[:200]!r} is a link; pack the file itself")
    if entry.flag_bits & 0x1:
        raise _refusal(f"{name[:200]!r} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refusal(f"{name[:200]!r} is packed by a method other than deflate")


def _check_known(entry: zipfile.ZipInfo, name: str) -> None:
    if name in TAKEN or name in IGNORED:
        return
    if name.endswith(PICKLES):
        raise _refusal(
            f"{entry.filename[:200]!r} may be a pickle, and those are never read; leave it out, and save the "
            "adapter with `save_pretrained`, whose weights are safetensors"
        )
    raise _refusal(f"{entry.filename[:200]!r} is no file of a PEFT folder; leave it out")
