"""Short names for adapters, as vLLM's clients load them: a job may name one as its model.

A name is its owner's own word, also an operator's: two owners may give the same one to different adapters.
Key: `tandem:adapter-aliases` hash of `<owner>/<name>` to the alias (JSON).
"""

import time

from pydantic import BaseModel, ConfigDict

from tandem.adapters import AdapterManifest, AdapterStore, is_adapter_id
from tandem.catalogue import Catalogue
from tandem.errors import InvalidRequest, UnknownAdapter
from tandem.function_library import PREFIX
from tandem.job_store import JobStore

KEY = f"{PREFIX}adapter-aliases"


class AdapterAlias(BaseModel):
    """One name, and what it stands for."""

    model_config = ConfigDict(frozen=True)

    name: str
    adapter: str
    """The adapter's id."""
    owner: str
    created_at: float
    """Seconds since the epoch."""


class AdapterAliases:
    """Thread-safe. Every method raises QueueUnavailable."""

    def __init__(self, jobs: JobStore, catalogue: Catalogue, adapters: AdapterStore) -> None:
        self._redis, self._guard = jobs.redis, jobs.guard
        self._catalogue = catalogue
        self._adapters = adapters

    def add(self, name: str, adapter: AdapterManifest, *, owner: str, replace: bool = False) -> AdapterAlias:
        """Let `name` stand for an adapter. Raises InvalidRequest if it stands for something else already."""
        if name in self._catalogue:
            raise InvalidRequest(f"`lora_name` {name!r} is a base model; choose another name", param="lora_name")
        if is_adapter_id(name):
            raise InvalidRequest(
                f"`lora_name` {name!r} begins as the ids of adapters do; choose another name", param="lora_name"
            )
        alias = AdapterAlias(name=name, adapter=adapter.id, owner=owner, created_at=time.time())
        with self._guard():
            written = bool(self._redis.hsetnx(KEY, _field(owner, name), alias.model_dump_json()))
            if not written and (replace or self._resolve(name, owner) is None):
                self._redis.hset(KEY, _field(owner, name), alias.model_dump_json())
                written = True
        if not written:
            raise InvalidRequest(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
                param="lora_name",
            )
        return alias

    def get(self, name: str, *, owner: str) -> AdapterAlias | None:
        """What an owner's name stands for; None if for nothing."""
        with self._guard():
            alias = self._redis.hget(KEY, _field(owner, name))
        return None if alias is None else AdapterAlias.model_validate_json(alias)

    def find(self, name: str, *, owner: str, reach: str | None, param: str) -> AdapterManifest:
        """An adapter by its id, or by a name that `owner` has given to it. `reach`: whose adapters there are to it;
        None: everybody's. Raises UnknownAdapter.
        """
        alias = None if is_adapter_id(name) else self.get(name, owner=owner)
        return self._adapters.get(alias.adapter if alias else name, owner=reach, param=param)

    def list(self, *, owner: str) -> list[tuple[AdapterAlias, AdapterManifest]]:
        """Every name that an owner has given to an adapter that is there, newest first."""
        with self._guard():
            aliases = [AdapterAlias.model_validate_json(alias) for alias in self._redis.hvals(KEY)]
        found = [alias for alias in aliases if alias.owner == owner]
        manifests = {manifest.id: manifest for manifest in self._adapters.list()} if found else {}
        named = [(alias, manifests[alias.adapter]) for alias in found if alias.adapter in manifests]
        return sorted(named, key=lambda pair: pair[0].created_at, reverse=True)

    def remove(self, name: str, *, owner: str) -> bool:
        """Let an owner's name stand for nothing; False if it did already. The adapter stays."""
        with self._guard():
            return bool(self._redis.hdel(KEY, _field(owner, name)))

    def remove_of(self, adapter: str) -> None:
        """Remove every name of a deleted adapter."""
        with self._guard():
            aliases = [AdapterAlias.model_validate_json(alias) for alias in self._redis.hvals(KEY)]
            fields = [_field(alias.owner, alias.name) for alias in aliases if alias.adapter == adapter]
            if fields:
                self._redis.hdel(KEY, *fields)

    def _resolve(self, name: str, owner: str) -> AdapterManifest | None:
        """The adapter of an owner's name; None if it stands for none, or for one that has been deleted."""
        alias = self.get(name, owner=owner)
        if alias is None:
            return None
        try:
            return self._adapters.get(alias.adapter)
        except UnknownAdapter:
            # Deleted while this name was given: it stands for nothing any more.
            return None


def withdraw(
    adapters: AdapterStore,
    aliases: AdapterAliases,
    adapter: str,
    *,
    owner: str | None = None,
    param: str = "adapter",
) -> None:
    """Withdraw an adapter and every name of it. Raises UnknownAdapter; with `owner`, also for another owner's."""
    adapters.delete(adapter, owner=owner, param=param)
    aliases.remove_of(adapter)


def _field(owner: str, name: str) -> str:
    return f"{owner}/{name}"
