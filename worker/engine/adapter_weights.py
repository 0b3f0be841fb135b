"""A LoRA adapter's weights on the host, read from the folder that PEFT writes."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tandem.errors import AdapterMismatch, InvalidRequest
from tandem.specs import MAX_LORA_RANK

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
KEY_PREFIX = "base_model.model."
"""PEFT's wrappers around the model, which stand before every module's path in the weights' keys."""

SERVED_FIELDS = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"})
"""Fields of the config that the engine acts on."""

NEUTRAL_FIELDS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "target_modules",
        "task_type",
    }
)
"""Fields that change how an adapter is made, or only describe it, but not what its weights compute."""

INITIALIZATIONS_OVER_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` that also change the base weights: such an adapter is wrong on the plain base."""


@dataclass(frozen=True)
class LowRankPair:
    """One linear layer's update: W x + scaling * B A x (Hu et al. 2021)."""

    a: torch.Tensor
    """[rank, in_features]"""
    b: torch.Tensor
    """[out_features, rank]"""
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def check_fits(self, adapter_id: str, path: str, linear: nn.Linear) -> None:
        """Raise AdapterMismatch unless the pair has the shapes of the layer at `path`."""
        expected = (linear.in_features, linear.out_features)
        found = (self.a.shape[1], self.b.shape[0])
        if found != expected or self.a.shape[0] != self.b.shape[1]:
            raise AdapterMismatch(
                f"adapter {adapter_id!r} was trained on another base model: its update of {path} goes from "
                f"{found[0]} to {found[1]} features, the model's layer from {expected[0]} to {expected[1]}",
                param="adapter",
            )


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """A published, immutable adapter. Two with the same id hold the same weights."""

    id: str
    modules: dict[str, LowRankPair]
    """By the path of the linear layer in the model, such as `model.layers.0.self_attn.q_proj`."""

    @property
    def rank(self) -> int:
        """The largest rank of its pairs; 0 without any."""
        return max((pair.rank for pair in self.modules.values()), default=0)


def read_adapter(
    adapter_id: str, folder: Path, model: nn.Module, *, rank_limit: int = MAX_LORA_RANK
) -> AdapterWeights:
    """Read and check a PEFT LoRA folder for `model`; call it outside the engine's thread.

    Raises InvalidRequest for files that cannot be served and for a rank above `rank_limit`, AdapterMismatch for
    weights of another base model; both name what is at fault.
    """
    config = read_config(adapter_id, folder)
    tensors = read_tensors(adapter_id, folder)
    linears = {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    modules = low_rank_pairs(adapter_id, tensors, config, linears, rank_limit=rank_limit)
    if not modules:
        raise refusal(adapter_id, f"{WEIGHTS_FILE} holds no LoRA weights")
    return AdapterWeights(adapter_id, modules)


def low_rank_pairs(
    adapter_id: str,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any],
    linears: Mapping[str, nn.Linear],
    *,
    rank_limit: int,
) -> dict[str, LowRankPair]:
    """The checked updates by their layer's path, of the LoRA weights `tensors` and the layers that may have one.

    Raises what `read_adapter` raises.
    """
    tensors = _without_copied_base(adapter_id, tensors, linears)
    modules: dict[str, LowRankPair] = {}
    for path in sorted(_paths(adapter_id, tensors)):
        pair = _pair(adapter_id, path, tensors, config)
        if path not in linears:
            raise AdapterMismatch(
                f"adapter {adapter_id!r} changes {path}, which is no linear layer of the model", param="adapter"
            )
        pair.check_fits(adapter_id, path, linears[path])
        if pair.rank > rank_limit:
            raise refusal(adapter_id, f"rank {pair.rank} of {path} is above the limit of {rank_limit}")
        modules[path] = pair
    return modules


def refusal(adapter_id: str, reason: str) -> InvalidRequest:
    """The error of an adapter whose files cannot be served."""
    return InvalidRequest(f"adapter {adapter_id!r} cannot be served: {reason}", param="adapter")


def read_config(adapter_id: str, folder: Path, *, also_served: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The folder's CONFIG_FILE; `also_served` are fields that the caller acts on besides SERVED_FIELDS.

    Raises InvalidRequest if it cannot be read, or asks for what is not served.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refusal(adapter_id, f"{CONFIG_FILE} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise refusal(adapter_id, f"{CONFIG_FILE} is not a JSON object")
    if config.get("peft_type") != "LORA":
        raise refusal(adapter_id, f"peft_type is {config.get('peft_type')!r}; only LORA is served")
    initialization = config.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.lower().startswith(INITIALIZATIONS_OVER_THE_BASE):
        raise refusal(adapter_id, f"init_lora_weights {initialization!r} also changes the base weights")
    known = SERVED_FIELDS | NEUTRAL_FIELDS | also_served
    for field, value in config.items():
        # A field that this version does not know may change what the adapter computes: refuse it unless it is off.
        if field not in known and value not in (None, False, "none", 0, [], {}, ""):
            raise refusal(adapter_id, f"{field} is set to {value!r}, which the engine does not implement")
    return config


def read_tensors(adapter_id: str, folder: Path) -> dict[str, torch.Tensor]:
    """All of WEIGHTS_FILE, on the host. Raises InvalidRequest if it cannot be read or holds values not finite."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise refusal(adapter_id, f"{WEIGHTS_FILE} cannot be read ({error})") from error
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise refusal(adapter_id, f"{key} holds values that are not finite")
    return tensors


def _without_copied_base(
    adapter_id: str, tensors: dict[str, torch.Tensor], linears: Mapping[str, nn.Linear]
) -> dict[str, torch.Tensor]:
    """Drop what PEFT saves of the base beside an adapter of the head: it must be the model's own weight."""
    kept = dict(tensors)
    for key in tensors:
        if not key.endswith(".base_layer.weight"):
            continue
        copied = kept.pop(key)
        path = key.removeprefix(KEY_PREFIX).removesuffix(".base_layer.weight")
        own = linears[path].weight if path in linears else None
        if own is None or own.shape != copied.shape or not torch.equal(copied.to(own), own):
            raise AdapterMismatch(
                f"adapter {adapter_id!r} brings a base weight of its own for {path}", param="adapter"
            )
    return kept


def _paths(adapter_id: str, tensors: Iterable[str]) -> set[str]:
    """The paths of the adapted layers."""
    paths = set()
    for key in tensors:
        match = re.fullmatch(re.escape(KEY_PREFIX) + r"(.+)\.lora_[AB]\.weight", key)
        if match is None:
            raise refusal(adapter_id, f"{WEIGHTS_FILE} has the unknown key {key}")
        paths.add(match[1])
    return paths


def _pair(adapter_id: str, path: str, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> LowRankPair:
    a = tensors.get(f"{KEY_PREFIX}{path}.lora_A.weight")
    b = tensors.get(f"{KEY_PREFIX}{path}.lora_B.weight")
    if a is None or b is None:
        raise refusal(adapter_id, f"{path} has only one of lora_A and lora_B")
    if a.ndim != 2 or b.ndim != 2:
        raise refusal(adapter_id, f"lora_A and lora_B of {path} must be matrices")
    rank = _setting(adapter_id, config, "rank_pattern", path, "r")
    alpha = _setting(adapter_id, config, "alpha_pattern", path, "lora_alpha")
    if rank != a.shape[0] or rank < 1:
        raise refusal(adapter_id, f"r is {rank} for {path} in {CONFIG_FILE}, but lora_A has {a.shape[0]} rows")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise refusal(adapter_id, f"lora_alpha is {alpha!r} for {path}; it must be a number")
    # rsLoRA (Kalajdzievski 2023) divides by the root of the rank.
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LowRankPair(a, b, scaling)


def _setting(adapter_id: str, config: dict[str, Any], patterns: str, path: str, default: str) -> Any:
    """A layer's setting by PEFT's rule: the first of `patterns` that matches the path's end, else the default."""
    by_pattern = config.get(patterns) or {}
    try:
        for pattern, value in by_pattern.items():
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
    except (re.error, AttributeError) as error:
        raise refusal(adapter_id, f"{patterns} must map patterns of paths to numbers ({error})") from error
    return config.get(default)
