"""Changes to the keys file, whole or not at all: comments and order of the other entries stay as they are."""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from tandem.api_keys import KeyEntry, digest_of, parse_keys
from tandem.errors import ConfigurationError, Conflict, NotFound

KEY_BYTES = 32
"""Of a generated key: 256 bits, as many as its digest keeps apart."""
PRIVATE_MODE = 0o600
_TABLE = re.compile(r"^[ \t]*\[\[[ \t]*keys[ \t]*\]\]", re.MULTILINE)


class KeysFile:
    """The file that TANDEM_API_KEYS_FILE names; it need not be there yet."""

    def __init__(self, path: Path) -> None:
        # A link stays one: what it points to is replaced.
        self.path = path.resolve()

    def entries(self) -> list[KeyEntry]:
        """Raises ConfigurationError if the file is faulty."""
        return parse_keys(self._text(), self.path)

    def add(
        self,
        name: str,
        *,
        owner: str | None = None,
        operator: bool = False,
        weight: float = 1.0,
        max_queued: int | None = None,
    ) -> str:
        """Make a key and append its entry; its owner is its name by default. Answers the key, which is kept nowhere.

        Raises Conflict if the name is taken, ConfigurationError for a value out of its limits or a faulty file.
        """
        key = f"tandem-{secrets.token_hex(KEY_BYTES)}"
        try:
            entry = KeyEntry(
                name=name,
                owner=owner,
                sha256=digest_of(key),
                operator=operator,
                weight=weight,
                max_queued=max_queued,
            )
        except ValidationError as error:
            first = error.errors()[0]
            param = str(first["loc"][0])
            raise ConfigurationError(f"{param}: {first['msg']} (it is {first['input']!r})", param=param) from error
        with self._locked():
            text = self._text()
            if any(known.name == name for known in parse_keys(text, self.path)):
                raise Conflict(f"{self.path} has a key {name!r} already; revoke it first", param="name")
            text = "\n\n".join(part for part in (text.rstrip(), _table(entry)) if part)
            # A file in another style may not take a table at its end.
            parse_keys(text, self.path)
            self._replace(text)
        return key

    def revoke(self, name: str) -> None:
        """Remove a key's entry. Raises NotFound, ConfigurationError if the file is faulty or not ours to edit."""
        with self._locked():
            text = self._text()
            entries = parse_keys(text, self.path)
            if all(entry.name != name for entry in entries):
                raise NotFound(
                    f"{self.path} has no key {name!r}; `tandem keys list` shows those it has", param="name"
                )
            rest = self._without(text, name)
            # Whatever the file looks like, exactly this one entry may go.
            if parse_keys(rest, self.path) != [entry for entry in entries if entry.name != name]:
                raise ConfigurationError(f"{self.path} is not written as [[keys]] tables: remove {name!r} by hand")
            self._replace(rest)

    def _without(self, text: str, name: str) -> str:
        starts = [match.start() for match in _TABLE.finditer(text)]
        for start, end in pairwise([*starts, len(text)]):
            # Comments and blank lines before the next table are that table's.
            table = re.sub(r"(?:^[ \t]*(?:#.*)?\n)+\Z", "", text[start:end], flags=re.MULTILINE)
            if [entry.name for entry in parse_keys(table, self.path)] == [name]:
                return text[:start] + text[start + len(table) :].lstrip("\n")
        return text

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"the keys file {self.path} cannot be read: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time. The folder carries the lock: the file itself is replaced."""
        try:
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigurationError(f"the folder of the keys file cannot be opened: {error}") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _replace(self, text: str) -> None:
        """Put a new text in the file's place. Mode and owner stay; a new file is its owner's alone."""
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            beside.unlink(missing_ok=True)
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
            with os.fdopen(descriptor, "w", encoding="utf-8") as target:
                target.write(text)
                target.flush()
                if self.path.exists():
                    before, now = self.path.stat(), os.fstat(descriptor)
                    if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
                        # Root edits a file that the service's user must go on reading.
                        os.fchown(descriptor, before.st_uid, before.st_gid)
                    os.fchmod(descriptor, before.st_mode & 0o777)
                os.fsync(descriptor)
            beside.replace(self.path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise ConfigurationError(f"the keys file {self.path} cannot be written: {error}") from error


def _table(entry: KeyEntry) -> str:
    # JSON's strings and numbers are TOML's too.
    fields = entry.model_dump(exclude_none=True)
    return "".join(["[[keys]]\n", *(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())])
