"""How token vectors become one vector a text, by the files that sentence-transformers saves beside a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.hub import cached_file

from tandem.errors import InvalidModel

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len")
"""What `1_Pooling/config.json` may ask for, in the order in which sentence-transformers joins several."""

MODULES = ("Transformer", "Pooling", "Normalize")
"""sentence-transformers modules that are served. Normalize is the request's own parameter here."""


def model_poolings(model: Any) -> list[str]:
    """The model's poolings, from the files that sentence-transformers saves beside it; the mean without them.

    Raises InvalidModel for a pooling, or a layer after it, that is not served.
    """
    config = model_file(model, "1_Pooling/config.json")
    for module in model_file(model, "modules.json") or []:
        if module["type"].rsplit(".", 1)[-1] not in MODULES:
            raise InvalidModel(
                f"{model.name_or_path} makes its embeddings with a {module['type']} layer, which is not served; "
                f"served are {', '.join(MODULES)}."
            )
    if config is None:
        return ["mean"]
    # Two generations of the file: one flag a pooling (`pooling_mode_mean_tokens`), or one name (`pooling_mode`).
    if isinstance(config.get("pooling_mode"), str):
        chosen = {config["pooling_mode"]}
    else:
        flags = {key for key, value in config.items() if key.startswith("pooling_mode_") and value is True}
        chosen = {key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens") for key in flags}
    if not chosen or not chosen <= set(POOLINGS):
        raise InvalidModel(
            f"{model.name_or_path} asks for the pooling {', '.join(sorted(chosen)) or 'none'}; served are "
            f"{', '.join(POOLINGS)}."
        )
    return [pooling for pooling in POOLINGS if pooling in chosen]


def pooled_vectors(hidden: Tensor, mask: Tensor, poolings: Sequence[str]) -> Tensor:
    """One vector a row, [rows, hidden · poolings], from token vectors [rows, tokens, hidden].

    mask: [rows, tokens, 1], with a 1 for each token that counts.
    """
    return torch.cat([_pool(hidden, mask, pooling) for pooling in poolings], dim=-1)


def _pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector a row, [rows, hidden], from token vectors [rows, tokens, hidden] and mask [rows, tokens, 1]."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return hidden.masked_fill(mask == 0, float("-inf")).amax(dim=1)
    total, count = (hidden * mask).sum(dim=1), mask.sum(dim=1)
    return total / (count if pooling == "mean" else count.sqrt())


def model_file(model: Any, name: str) -> Any:
    """A JSON file beside the model's weights (its folder, or the hub's local cache); None where there is none."""
    if not model.name_or_path:
        return None
    path = cached_file(
        model.name_or_path,
        name,
        revision=getattr(model.config, "_commit_hash", None),
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    return json.loads(Path(path).read_text(encoding="utf-8"))
