"""Adapters trained elsewhere: an uploaded PEFT folder becomes an adapter like those that jobs publish.

Everything is checked that needs no tensor: the archive, the configs, the weights' names and shapes, and whether they
fit the base's layers where the base's files are on this machine. What is left, such as numbers that are not finite,
the first worker that loads the adapter checks, before it serves it.
"""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from tandem.adapter_archive import unpack
from tandem.adapter_contents import AdapterContents, VirtualTokens, read_contents
from tandem.adapter_layers import LayerChange
from tandem.adapters import AdapterManifest, Checked, ImportedMethod, adapter_id
from tandem.catalogue import CatalogueEntry
from tandem.errors import AdapterMismatch, Conflict, InvalidModel, InvalidRequest, UnsupportedTask
from tandem.safetensors_header import NotSafetensors, read_header
from tandem.services import Services
from tandem.specs.base import SUFFIX_PATTERN, FileId, Name, Spec
from tandem.specs.finetune import RESIDENT_TASK, base_does
from tandem.specs.peft_config import MAX_QUOTED, MODEL_CONFIG_FILE

PURPOSE = "adapter"
"""Of a file that is to become an adapter."""
BASE_WEIGHTS = "model.safetensors"
"""The weights file of a model, or the beginning of its index's name where there are several (transformers)."""


class AdapterUpload(Spec):
    """An adapter trained elsewhere."""

    file: FileId
    """A zip file of the PEFT folder, uploaded with the purpose `adapter`."""
    base: Name
    """The catalogue name of the model that it was trained on."""
    suffix: str = Field(default="adapter", pattern=SUFFIX_PATTERN)
    """A word of yours in the adapter's id: `ft:<base>:<owner>:<suffix>:<number>`."""


def import_adapter(
    services: Services, upload: AdapterUpload, *, owner: str, reach: str | None = None, limit: int
) -> AdapterManifest:
    """Check an uploaded PEFT folder, and publish it. The same content under the same names is the same adapter.

    `reach`: whose files there are to it; None: everybody's. `limit` is in bytes, of the unpacked weights.

    Raises:
        UnknownFile, UnknownModel: there is no such file or base.
        InvalidRequest: the file cannot be served; the message names what is at fault.
        UnsupportedTask: nobody serves adapters for its task, or the base does not do it.
        AdapterMismatch: it was trained on another base model.
        Conflict: an adapter with other content has its id.
    """
    file = services.files.get(upload.file, owner=reach, param="file")
    if file.purpose != PURPOSE:
        raise InvalidRequest(
            f"`file` {file.id} was uploaded for {file.purpose!r}; upload it with purpose {PURPOSE!r}", param="file"
        )
    base = services.catalogue.get(upload.base)
    with tempfile.TemporaryDirectory(prefix="tandem-import-") as name:
        archive, folder = Path(name) / "archive.zip", Path(name) / "adapter"
        folder.mkdir()
        services.artifacts.fetch(file.digest, archive)
        unpack(archive, folder, limit=limit)
        contents = read_contents(folder)
        checked = check_base(contents, base)
        files = {name: artifact.digest for name, artifact in services.adapters.put_folder(folder).items()}
    manifest = services.adapters.publish(
        AdapterManifest(
            id=adapter_id(base.name, owner, upload.suffix, _number(files)),
            owner=owner,
            base=base.name,
            base_revision=base.revision,
            task=contents.task,
            labels=contents.labels,
            method=ImportedMethod(
                peft_type=contents.peft_type,
                r=contents.rank,
                num_virtual_tokens=None if contents.virtual_tokens is None else contents.virtual_tokens.count,
                target_modules=contents.target_modules,
            ),
            checked=checked,
            files=files,
            created_at=time.time(),
        )
    )
    if manifest.files != files:
        raise Conflict(f"adapter {manifest.id} has other content; import it with another suffix", param="suffix")
    return manifest


def _number(files: Mapping[str, str]) -> str:
    """What tells adapters of one base, owner and suffix apart: the content's digest, so that a repetition is one."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


# The base: its shapes as its own files tell them.


def check_base(contents: AdapterContents, base: CatalogueEntry) -> Checked:
    """Whether the adapter fits the base, and how far that could be told on this machine.

    Raises UnsupportedTask, AdapterMismatch, and InvalidModel for a base whose files are broken.
    """
    if not base_does(contents.task, base.tasks):
        raise UnsupportedTask(
            f"the adapter does {contents.task}, for which its base must do {RESIDENT_TASK[contents.task]!r}; "
            f"{base.name!r} does: "
            f"{', '.join(base.tasks)}",
            param="base",
        )
    if base.folder is None or not (base.folder / MODEL_CONFIG_FILE).is_file():
        return "files"
    shapes = _layer_shapes(base.folder)
    if shapes is None:
        return "files"
    config = json.loads((base.folder / MODEL_CONFIG_FILE).read_bytes())
    if contents.model_type not in (None, config.get("model_type")):
        raise _mismatch(
            base, f"{MODEL_CONFIG_FILE} says {contents.model_type}, the base is a {config.get('model_type')}"
        )
    for path, change in contents.layers.items():
        _check_layer(base, path, change, shapes)
    if contents.virtual_tokens is not None:
        _check_width(base, contents.peft_type, contents.virtual_tokens, config)
    return "files and base"


def _mismatch(base: CatalogueEntry, reason: str) -> AdapterMismatch:
    return AdapterMismatch(f"the adapter was not trained on {base.name!r}: {reason}", param="base")


def _layer_shapes(folder: Path) -> dict[str, list[tuple[int, ...]]] | None:
    """The shapes of a model's weights by `_place_in_list`; None where its safetensors files are not in the folder."""
    index = folder / f"{BASE_WEIGHTS}.index.json"
    names = {BASE_WEIGHTS} if not index.is_file() else set(json.loads(index.read_bytes())["weight_map"].values())
    if not all((folder / name).is_file() for name in names):
        return None
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for name in sorted(names):
        try:
            tensors = read_header(folder / name)
        except NotSafetensors as error:
            raise InvalidModel(f"{name} of the base {folder.name} is broken: {error}", param="base") from error
        for key, tensor in tensors.items():
            place = _place_in_list(key.removesuffix(".weight"))
            if place is not None:
                shapes.setdefault(place, []).append(tensor.shape)
    return shapes


def _place_in_list(path: str) -> str | None:
    """`layers.0.self_attn.q_proj` of a layer's path; None for one that stands in no list of layers.

    What comes before may have another name in a model's class than in its file (`model.`, `bert.`).
    """
    match = re.search(r"(?:^|\.)(\w+\.\d+\..+)$", path)
    return match and match[1]


def _check_layer(
    base: CatalogueEntry, path: str, change: LayerChange, shapes: Mapping[str, list[tuple[int, ...]]]
) -> None:
    """Raise AdapterMismatch unless the base has a linear layer at `path` that the change fits.

    A path outside the list of layers, the head's, is left to the worker: the base's file may not have it, where it is
    tied to the embeddings.
    """
    place = _place_in_list(path)
    if place is None:
        return
    found, called = shapes.get(place), path[:MAX_QUOTED]
    if not found:
        raise _mismatch(base, f"the adapter changes {called}, which the base does not have")
    if not any(_fits(change, shape) for shape in found):
        told = ", ".join("any" if size is None else str(size) for size in (change.out_features, change.in_features))
        raise _mismatch(base, f"its change of {called} is for weights [{told}], the base has {list(found[0])}")


def _fits(change: LayerChange, shape: tuple[int, ...]) -> bool:
    """GPT-2's layers keep their weights as [in, out], all others as [out, in], and no file says which is meant."""
    wanted = (change.out_features, change.in_features)
    return len(shape) == 2 and any(
        all(size in (None, real) for size, real in zip(wanted, kept, strict=True)) for kept in (shape, shape[::-1])
    )


def _check_width(base: CatalogueEntry, peft_type: str, tokens: VirtualTokens, config: Mapping[str, Any]) -> None:
    """Raise AdapterMismatch if the virtual tokens are not as wide as the base's hidden states, or keys and values."""
    config = config.get("text_config", config)
    hidden = config.get("hidden_size") or config.get("n_embd") or config.get("d_model")
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    heads = config.get("num_attention_heads") or config.get("n_head")
    if hidden is None or layers is None or heads is None:
        return
    width = hidden
    if peft_type == "PREFIX_TUNING":
        head_dim = config.get("head_dim") or hidden // heads
        width = 2 * layers * head_dim * (config.get("num_key_value_heads") or heads)
    if tokens.width != width:
        raise _mismatch(base, f"its virtual tokens have {tokens.width} numbers each, the base takes {width}")
