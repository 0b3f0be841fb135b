"""API keys and whose they are: the single TANDEM_API_KEY, and the file that TANDEM_API_KEYS_FILE names.

The file is TOML with one table a key; `tandem keys` edits it, and so may a person:

    [[keys]]
    name = "ann"
    owner = "team-a"     # whose is what is made with this key; by default the key's name
    sha256 = "9f86d0…"   # of the key: the file lets nobody in who reads it
    operator = false     # whether it reaches what is anybody's, and the service's own routes
    weight = 2.0         # the owner's share of the devices beside other owners; 1 by default
    max_queued = 10000   # queued jobs of the owner at once; no limit by default

What a key makes is its owner's, and for keys of other owners it does not exist; only an operator's key reaches all
(`ApiKey.reach`, which the stores are asked with).
"""

import hashlib
import logging
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tandem.errors import ConfigurationError
from tandem.settings import ApiSettings

OWNER_PATTERN = r"^[a-z0-9][a-z0-9-]{0,39}$"
"""It becomes a part of Redis keys and of adapters' ids: no colon, no upper case; 40 characters stay readable."""
DEFAULT_OWNER = "default"
"""Whose jobs, files and adapters those of TANDEM_API_KEY are."""
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0
"""Shares that are a million apart are no shares any more: the smaller one would starve."""

logger = logging.getLogger(__name__)

OwnerName = Annotated[str, Field(pattern=OWNER_PATTERN)]
Weight = Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)]
MaxQueued = Annotated[int, Field(ge=1)]


class ApiKey(BaseModel):
    """What a key is allowed. The key itself is nowhere."""

    model_config = ConfigDict(frozen=True)

    owner: OwnerName
    operator: bool = False
    """Whether it reaches what is anybody's, and may hold back the service."""
    weight: Weight = 1.0
    """Share of the devices, relative to the weights of the other keys that have work waiting."""
    max_queued: MaxQueued | None = None
    """Queued jobs at once; None sets no limit of its own."""

    @property
    def reach(self) -> str | None:
        """Whose things there are to it: its owner's, or everybody's (None)."""
        return None if self.operator else self.owner


class KeyEntry(BaseModel):
    """One `[[keys]]` table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: OwnerName
    owner: OwnerName | None = None
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    operator: bool = False
    weight: Weight = 1.0
    max_queued: MaxQueued | None = None

    def as_key(self) -> ApiKey:
        return ApiKey(
            owner=self.owner or self.name, operator=self.operator, weight=self.weight, max_queued=self.max_queued
        )


class _KeysDocument(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # A list, since strict mode takes TOML's array for no tuple.
    keys: list[KeyEntry] = []


def digest_of(key: str) -> str:
    """What stands in the file for a key. Unsalted: keys are random (`tandem keys new`), no table has them."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_keys(text: str, path: Path) -> list[KeyEntry]:
    """The entries of a keys file. Raises ConfigurationError naming the entry and the field at fault."""
    try:
        entries = _KeysDocument.model_validate(tomllib.loads(text)).keys
    except tomllib.TOMLDecodeError as error:
        raise _faulty(path, str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise _faulty(path, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    for field in ("name", "sha256"):
        values: list[str] = [getattr(entry, field) for entry in entries]
        repeated = next((value for value in values if values.count(value) > 1), None)
        if repeated is not None:
            raise _faulty(path, f"two keys have the {field} {repeated!r}; remove one of them")
    firsts: dict[str, ApiKey] = {}
    for key in (entry.as_key() for entry in entries):
        known = firsts.setdefault(key.owner, key)
        if (known.weight, known.max_queued) != (key.weight, key.max_queued):
            raise _faulty(path, f"the keys of owner {key.owner!r} must have one `weight` and one `max_queued`")
    return entries


@dataclass(frozen=True, slots=True)
class _Reading:
    """The file as it was last read."""

    version: tuple[int, ...] | None
    """Changes with every edit; None while there is no file."""
    keys: dict[str, ApiKey]
    """Digest of a key → what it is allowed."""


class ApiKeys:
    """Tells whose a key is. A changed keys file counts from the next request on: revoking needs no restart.

    A file that turns faulty, or cannot be read, changes nothing and is logged: half an edit must not lock everyone
    out. To revoke a key, remove its entry.
    """

    def __init__(self, single: str | None, path: Path | None) -> None:
        """Use `load`. Raises ConfigurationError for a file that cannot be used."""
        self._single = {} if single is None else {digest_of(single): ApiKey(owner=DEFAULT_OWNER, operator=True)}
        self._path = path
        self._reading = _Reading(None, {}) if path is None else self._read(path)

    @classmethod
    def load(cls, settings: ApiSettings) -> "ApiKeys":
        """The keys that the settings name. Raises ConfigurationError if there are none, or the file is faulty."""
        single = None if settings.api_key is None else settings.api_key.get_secret_value()
        keys = cls(single, settings.api_keys_file)
        if not keys._single and not keys._reading.keys:
            raise ConfigurationError(
                f"{settings.api_keys_file} has no keys, and TANDEM_API_KEY is not set: nobody could get in; "
                "make a key with `tandem keys new NAME`",
                param="TANDEM_API_KEYS_FILE",
            )
        return keys

    def identify(self, presented: str) -> ApiKey | None:
        """The key's rights, or None for one that is unknown.

        A plain dict look-up: what is compared are digests. How long a comparison takes could tell something about a
        digest, but nobody can choose a key by its digest, so it tells nothing about a key.
        """
        digest = digest_of(presented)
        return self._single.get(digest) or self._current().get(digest)

    def _current(self) -> dict[str, ApiKey]:
        """The file's keys; read again if it has changed. One `stat` a request, microseconds on a local disk."""
        if self._path is None:
            return {}
        version = _version_of(self._path)
        if version != self._reading.version:
            try:
                self._reading = self._read(self._path)
                logger.info("%s has changed: it has %d keys now", self._path, len(self._reading.keys))
            except ConfigurationError as error:
                # Remembered with the faulty version, so that one fault is one line in the log.
                self._reading = _Reading(version, self._reading.keys)
                logger.error("the API keys stay as they were: %s", error.message)
        return self._reading.keys

    def _read(self, path: Path) -> _Reading:
        try:
            with path.open(encoding="utf-8") as source:
                # Of the opened file: another may be moved into its place meanwhile, and is then seen as a change.
                version = _version(os.fstat(source.fileno()))
                entries = parse_keys(source.read(), path)
        except (OSError, UnicodeDecodeError) as error:
            raise _faulty(path, f"it cannot be read ({error}); `tandem keys new NAME` makes it") from error
        keys = {entry.sha256: entry.as_key() for entry in entries}
        if self._single and any(entry.as_key().owner == DEFAULT_OWNER for entry in entries):
            raise _faulty(path, f"{DEFAULT_OWNER!r} is the owner of TANDEM_API_KEY; unset that, or rename the entry")
        if self._single.keys() & keys.keys():
            raise _faulty(path, "one of its keys is TANDEM_API_KEY; unset that, or remove the entry")
        return _Reading(version, keys)


def _version_of(path: Path) -> tuple[int, ...] | None:
    try:
        return _version(path.stat())
    except OSError:
        # Gone or out of reach: reading it says why.
        return None


def _version(status: os.stat_result) -> tuple[int, ...]:
    # The time alone misses two edits within one tick of the file system's clock.
    return (status.st_mtime_ns, status.st_ino, status.st_size)


def _faulty(path: Path, why: Any) -> ConfigurationError:
    return ConfigurationError(f"the keys file {path}: {why}", param="TANDEM_API_KEYS_FILE")
