"""Adapters: trained, published, immutable. The manifest in the artifact store is the truth, Redis the index.

Most are published by the jobs that train them; adapter_import.py publishes those that were trained elsewhere.

Keys: `tandem:adapter:<id>` the manifest (JSON); `tandem:adapters` sorted set of ids by creation (seconds);
`tandem:pinned-adapters` hash of the ids of pinned adapters to their bases.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from typing_extensions import Buffer

from tandem.artifacts import Artifact, ArtifactStore
from tandem.errors import InvalidRequest, UnknownAdapter
from tandem.function_library import PREFIX
from tandem.job_store import JobStore
from tandem.specs import Task
from tandem.specs.finetune import EMBEDDING, TEXT_TO_TEXT
from tandem.specs.methods import Method

PINNED = f"{PREFIX}pinned-adapters"
FOLDER = "adapters"
"""Where the manifests are published in the artifact store."""


Checked = Literal["files", "files and base"]
"""How far an imported adapter was checked before it was published: its own files, or also against the base's
weights. What is left, the first worker that loads it checks."""


Served = Literal["mixed-batch", "apart", "not-served"]
"""How jobs run with an adapter: in one batch with others, other adapters' among them; one adapter at a time, by the
library, since it is no update that the batch's slots can hold; or not at all, because its model is one that the
engine does not hold. Its folder can be had all the same."""


class ImportedMethod(BaseModel):
    """What an adapter is made of that was trained elsewhere, as its files say."""

    model_config = ConfigDict(frozen=True)

    type: Literal["imported"] = "imported"
    peft_type: str
    """PEFT's name for the kind, such as `LORA`."""
    r: int | None
    """The largest rank; None for a kind without."""
    num_virtual_tokens: int | None
    target_modules: tuple[str, ...]
    """The last names of the layers that it changes."""


class AdapterManifest(BaseModel):
    """What an adapter is, where it came from, and the files of its PEFT folder."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    base: str
    """The catalogue name of the model that it was trained on."""
    base_revision: str | None
    task: Task
    labels: tuple[str, ...] = ()
    """What a classifier's outputs mean, in order; empty for adapters without labels."""
    method: Method | ImportedMethod
    job_id: str | None = None
    """The training; None for an adapter that was trained elsewhere, of which the data are not known either."""
    training_data: str | None = None
    """SHA-256 of the training file."""
    validation_data: str | None = None
    metrics: dict[str, Any] = {}
    result_files: dict[str, str] = {}
    """Of a training: what is told of its course, by name (`metrics.csv`, `loss.png`) → file id."""
    checkpoints: tuple[dict[str, Any], ...] = ()
    """Of a training, those of its checkpoints that are adapters too: `step`, `adapter` (the id) and `metrics`."""
    served: Served | None = None
    """As the worker that trained it found; None where no worker has."""
    checked: Checked | None = None
    """Of an imported adapter."""
    files: dict[str, str]
    """File name in the PEFT folder → digest of its content."""
    created_at: float

    def does(self, task: Task) -> bool:
        """Whether jobs of `task` can name it."""
        return task == self.task or any(self.task in kin and task in kin for kin in (TEXT_TO_TEXT, EMBEDDING))


def adapter_id(base: str, owner: str, suffix: str, origin: str) -> str:
    """An adapter's id in OpenAI's `ft:` form. `origin` is the job's id, the same for all its attempts, or the digest
    of what was imported."""
    return f"ft:{base}:{owner}:{suffix}:{origin.removeprefix('job_')[:8]}"


def is_adapter_id(name: str) -> bool:
    return name.startswith("ft:")


class AdapterStore:
    def __init__(self, jobs: JobStore, artifacts: ArtifactStore) -> None:
        self._redis, self._guard = jobs.redis, jobs.guard
        self._artifacts = artifacts

    def put_folder(self, folder: Path) -> Mapping[str, Artifact]:
        """Store the files of a PEFT folder: name → artifact."""
        return {path.name: self._artifacts.put_file(path) for path in sorted(folder.iterdir()) if path.is_file()}

    def publish(self, manifest: AdapterManifest) -> AdapterManifest:
        """Make an adapter usable, once. If an earlier attempt has published it, that one stands and is returned.

        Raises UnknownArtifact if one of its files is gone.
        """
        name = _document(manifest.id)
        for digest in manifest.files.values():
            # A resumed attempt may have put them long ago; a reference needs a young blob.
            self._artifacts.refresh(digest)
        if not self._artifacts.publish(name, manifest.model_dump_json().encode()):
            manifest = AdapterManifest.model_validate_json(self._artifacts.published(name) or b"")
        with self._guard(), self._redis.pipeline(transaction=True) as pipe:
            pipe.set(f"{PREFIX}adapter:{manifest.id}", manifest.model_dump_json())
            pipe.zadd(f"{PREFIX}adapters", {manifest.id: manifest.created_at})
            pipe.execute()
        return manifest

    def published(self, adapter: str) -> AdapterManifest | None:
        """What an earlier attempt has published under this id, if one has."""
        content = self._artifacts.published(_document(adapter))
        return None if content is None else AdapterManifest.model_validate_json(content)

    def get(self, adapter: str, *, owner: str | None = None, param: str = "adapter") -> AdapterManifest:
        """Raises UnknownAdapter; with `owner`, also for another owner's."""
        with self._guard():
            record = self._redis.get(f"{PREFIX}adapter:{adapter}")
        if record is None or owner not in (None, (manifest := AdapterManifest.model_validate_json(record)).owner):
            raise UnknownAdapter(f"there is no adapter {adapter!r}; GET /v1/adapters lists them", param=param)
        return manifest

    def list(self, *, owner: str | None = None) -> list[AdapterManifest]:
        """Every adapter, or an owner's, newest first."""
        with self._guard():
            ids = self._redis.zrange(f"{PREFIX}adapters", 0, -1, desc=True)
            records = self._redis.mget([f"{PREFIX}adapter:{adapter}" for adapter in ids]) if ids else []
        manifests = [AdapterManifest.model_validate_json(record) for record in records if record]
        return [manifest for manifest in manifests if owner in (None, manifest.owner)]

    def fetch(self, manifest: AdapterManifest, folder: Path) -> None:
        """Write the PEFT folder, loadable with `PeftModel.from_pretrained`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, digest in manifest.files.items():
            self._artifacts.fetch(digest, folder / name)

    def archive(self, manifest: AdapterManifest) -> Iterator[bytes]:
        """The PEFT folder as a zip file, piece by piece (stored, since weights do not compress).

        Raises UnknownArtifact at a file whose content is gone.
        """
        pieces = _Pieces()
        with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as archive:
            for name, digest in manifest.files.items():
                with archive.open(name, "w", force_zip64=True) as entry:
                    for chunk in self._artifacts.chunks(digest):
                        entry.write(chunk)
                        yield pieces.take()
            archive.writestr("tandem_manifest.json", manifest.model_dump_json(indent=2))
        yield pieces.take()

    def pin(self, manifest: AdapterManifest, *, slots: int | None) -> None:
        """Let an adapter keep its slot on every worker, from its first use there on. Pinned already: it stays so.

        `slots`: what the smallest worker has; None: not known. Raises InvalidRequest if they are pinned but for one.
        """
        others = self.pinned(manifest.base) - {manifest.id}
        if slots is not None and len(others) >= slots - 1:
            raise InvalidRequest(
                f"{len(others)} adapters of {manifest.base} are pinned, and a worker has {slots} slots for adapters "
                "(TANDEM_ADAPTER_SLOTS), of which one must be left to all others; unpin one first",
                param="adapter",
            )
        with self._guard():
            self._redis.hset(PINNED, manifest.id, manifest.base)

    def unpin(self, adapter: str) -> None:
        """Let an adapter leave its slot as others do; of one that is not pinned nothing changes."""
        with self._guard():
            self._redis.hdel(PINNED, adapter)

    def pinned(self, base: str | None = None) -> frozenset[str]:
        """The ids of the pinned adapters, or of those of one base."""
        with self._guard():
            pinned = self._redis.hgetall(PINNED)
        return frozenset(adapter for adapter, of_base in pinned.items() if base in (None, of_base))

    def delete(self, adapter: str, *, owner: str | None = None, param: str = "adapter") -> None:
        """Withdraw an adapter: no new job may name it. Raises UnknownAdapter."""
        self.get(adapter, owner=owner, param=param)
        with self._guard(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(f"{PREFIX}adapter:{adapter}")
            pipe.zrem(f"{PREFIX}adapters", adapter)
            pipe.hdel(PINNED, adapter)
            pipe.execute()
        self._artifacts.retract(_document(adapter))

    def artifact_references(self) -> Iterator[str]:
        """The digests of every adapter's files and of the data it was trained on, for artifact_collection.py.

        From the published documents: they are the truth, and are there when Redis has lost its index.
        """
        for content in self._artifacts.documents(FOLDER):
            manifest = AdapterManifest.model_validate_json(content)
            yield from manifest.files.values()
            yield from (data for data in (manifest.training_data, manifest.validation_data) if data is not None)


class _Pieces(io.RawIOBase):
    """Where zipfile writes: what has been written is taken out again before the next piece."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def write(self, piece: Buffer, /) -> int:
        self._written.append(bytes(piece))
        return len(self._written[-1])

    def take(self) -> bytes:
        pieces, self._written = self._written, []
        return b"".join(pieces)


def _document(adapter: str) -> str:
    # Colons and slashes are no part of a portable file name.
    return f"{FOLDER}/{adapter.replace(':', '_').replace('/', '_')}.json"
