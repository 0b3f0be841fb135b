"""Reads LoRA, DoRA, AdaLoRA, LoHa, LoKr, VeRA and IA3 weights as PEFT stores them, as updates of linear layers."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from tandem.errors import AdapterMismatch, InvalidRequest
from tandem.specs.peft_config import CONFIG_FILE, KEY_PREFIX, LAYER_PARTS, SHARED_PARTS, WEIGHTS_FILE
from worker.engine.adapters.linear_update import (
    LinearLayer,
    LinearUpdate,
    check_is_layer,
    check_sizes,
    has_four_bits,
    layer_dtype,
    layer_sizes,
)
from worker.engine.adapters.low_rank_factors import hadamard_pair, kronecker_pair, whole_as_pair
from worker.engine.adapters.peft_folder import ready_to_copy, refusal

Parts = dict[str, torch.Tensor]
"""One layer's tensors, by PEFT's names for them."""

BASE_COPY = "base_layer.weight"
"""PEFT's name for a base weight that it saves beside an adapter of the model's head."""

ADALORA_EPSILON = 1e-5
"""Added to the rank that AdaLoRA divides by, in PEFT's forward."""

NORM_ROWS = 4096
"""Output features whose norms are computed at a time: the head of a large model is 2 GB in float32."""


class RankAboveLimit(InvalidRequest):
    """An adapter that is sound, but has more ranks than a slot of the batch."""


def linear_updates(
    adapter_id: str,
    tensors: Mapping[str, torch.Tensor],
    config: dict[str, Any],
    layers: Mapping[str, LinearLayer],
    *,
    rank_limit: int,
) -> dict[str, LinearUpdate]:
    """The checked updates by their layer's path, of the weights `tensors` and the layers that may have one.

    `config` is of one of `LINEAR_METHODS`. Raises InvalidRequest for weights that cannot be served and for a rank
    above `rank_limit`, AdapterMismatch for those of another base model.
    """
    method = str(config["peft_type"])
    updates: dict[str, LinearUpdate] = {}
    by_path = _by_path(adapter_id, method, tensors)
    for path in sorted(by_path):
        layer, parts = check_is_layer(adapter_id, path, layers.get(path)), by_path[path]
        if BASE_COPY in parts:
            _check_copied_base(adapter_id, path, parts.pop(BASE_COPY), layer)
        update = _READERS[method](adapter_id, path, parts, config, layer)
        if update.rank > rank_limit:
            raise RankAboveLimit(
                f"adapter {adapter_id!r} cannot be served: rank {update.rank} of {path} is above the limit of "
                f"{rank_limit}",
                param="adapter",
            )
        updates[path] = update
    return updates


def layers_of(adapter_id: str, method: str, tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """The paths of the layers that an adapter's weights are for. Raises InvalidRequest for an unknown key."""
    return tuple(sorted(_by_path(adapter_id, method, tensors)))


def is_of_a_layer(key: str) -> bool:
    """Whether a key of the weights belongs to an update of a linear layer."""
    if any(key in shared for shared in SHARED_PARTS.values()):
        return True
    names = {name for needed, allowed in LAYER_PARTS.values() for name in needed | allowed}
    return any(key.endswith(f".{name}") for name in (*names, BASE_COPY))


def _by_path(adapter_id: str, method: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, Parts]:
    """Each layer's tensors; those that all share are among each one's, under their keys."""
    needed, allowed = LAYER_PARTS[method]
    names = "|".join(re.escape(name) for name in (*sorted(needed | allowed), BASE_COPY))
    by_path: dict[str, Parts] = {}
    shared = {key: tensors[key] for key in SHARED_PARTS.get(method, ()) if key in tensors}
    for key, tensor in tensors.items():
        if key in shared:
            continue
        match = re.fullmatch(rf"{re.escape(KEY_PREFIX)}(.+)\.({names})", key)
        if match is None:
            raise refusal(adapter_id, f"{WEIGHTS_FILE} has the unknown key {key}")
        by_path.setdefault(match[1], dict(shared))[match[2]] = tensor
    return by_path


def _check_copied_base(adapter_id: str, path: str, copied: torch.Tensor, layer: LinearLayer) -> None:
    """Refuse a base weight beside an adapter of the head that is not the model's own."""
    own = layer.weight
    if own.shape != copied.shape or not torch.equal(copied.to(own), own):
        raise AdapterMismatch(f"adapter {adapter_id!r} brings a base weight of its own for {path}", param="adapter")


def _lora(adapter_id: str, path: str, parts: Parts, config: dict[str, Any], layer: LinearLayer) -> LinearUpdate:
    """LoRA, with rsLoRA (Kalajdzievski 2023), which divides by the root of the rank, and DoRA."""
    a, b = _matrices(adapter_id, path, parts.get("lora_A.weight"), parts.get("lora_B.weight"), layer)
    rank = _setting(adapter_id, config, "rank_pattern", path, "r")
    if rank != a.shape[0] or rank < 1:
        raise refusal(adapter_id, f"r is {rank} for {path} in {CONFIG_FILE}, but lora_A has {a.shape[0]} rows")
    alpha = _alpha(adapter_id, path, _setting(adapter_id, config, "alpha_pattern", path, "lora_alpha"))
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    magnitude = parts.get("lora_magnitude_vector")
    if bool(config.get("use_dora")) != (magnitude is not None):
        has = "no" if magnitude is None else "a"
        raise refusal(
            adapter_id, f"use_dora is set to {config.get('use_dora')}, but {path} has {has} magnitude vector"
        )
    return _low_rank(adapter_id, path, a, b, scaling, layer, magnitude=magnitude)


def _adalora(adapter_id: str, path: str, parts: Parts, config: dict[str, Any], layer: LinearLayer) -> LinearUpdate:
    """AdaLoRA (Zhang et al. 2023): B (E * A), divided by the rank that its training began with."""
    a, b = _matrices(adapter_id, path, parts.get("lora_A"), parts.get("lora_B"), layer)
    singular = parts.get("lora_E")
    if singular is None or singular.shape != (a.shape[0], 1):
        raise refusal(
            adapter_id, f"{path} needs a lora_E of shape {(a.shape[0], 1)}, one value for each row of lora_A"
        )
    if a.shape[0] == 0:
        return LinearUpdate()
    alpha, first_rank = _alpha(adapter_id, path, config.get("lora_alpha")), config.get("init_r")
    if not isinstance(first_rank, int) or first_rank < 1:
        raise refusal(adapter_id, f"init_r is {first_rank!r}; it must be the rank that the training began with")
    if alpha <= 0:
        raise refusal(adapter_id, f"lora_alpha is {alpha}; AdaLoRA is served with one above 0")
    scaling = alpha / (first_rank + ADALORA_EPSILON)
    return _low_rank(adapter_id, path, a.float() * singular.float(), b, scaling, layer)


def _loha(adapter_id: str, path: str, parts: Parts, config: dict[str, Any], layer: LinearLayer) -> LinearUpdate:
    """LoHa (Hyeon-Woo et al. 2022): (w1_a w1_b) * (w2_a w2_b), of which every product of two ranks is a rank."""
    pairs = [_pair(adapter_id, path, parts, f"hada_{name}_a", f"hada_{name}_b") for name in ("w1", "w2")]
    return _product(adapter_id, path, hadamard_pair(*pairs), config, layer)


def _lokr(adapter_id: str, path: str, parts: Parts, config: dict[str, Any], layer: LinearLayer) -> LinearUpdate:
    """LoKr (Yeh et al. 2024): the Kronecker product of w1 and w2, each whole or a product itself."""
    pairs = [
        whole_as_pair(_matrix(adapter_id, path, parts, f"lokr_{name}"))
        if f"lokr_{name}" in parts
        else _pair(adapter_id, path, parts, f"lokr_{name}_a", f"lokr_{name}_b")
        for name in ("w1", "w2")
    ]
    return _product(adapter_id, path, kronecker_pair(*pairs), config, layer)


def _vera(adapter_id: str, path: str, parts: Parts, _config: dict[str, Any], layer: LinearLayer) -> LinearUpdate:
    """VeRA (Kopiczko et al. 2024): diag(lambda_b) B diag(lambda_d) A, of whose A and B each layer takes what fits."""
    vectors = [parts.get(name) for name in ("vera_lambda_b", "vera_lambda_d")]
    if any(key not in parts for key in SHARED_PARTS["VERA"]):
        raise refusal(
            adapter_id,
            f"{WEIGHTS_FILE} lacks the random matrices (base_model.vera_A and vera_B): save it with "
            "save_projection=True",
        )
    whole_a, whole_b = (_matrix(adapter_id, path, parts, f"base_model.vera_{name}") for name in "AB")
    inputs, outputs = layer_sizes(layer)
    a, b = whole_a[:, :inputs].float(), whole_b[:outputs].float()
    of_outputs, of_ranks = vectors
    if of_outputs is None or of_ranks is None or of_outputs.shape != (len(b),) or of_ranks.shape != (len(a),):
        raise refusal(adapter_id, f"{path} needs a vera_lambda_b of {len(b)} and a vera_lambda_d of {len(a)} numbers")
    a, b = a * of_ranks.float().unsqueeze(1), b * of_outputs.float().unsqueeze(1)
    a, b = _matrices(adapter_id, path, a, b, layer)
    return _low_rank(adapter_id, path, a, b, 1.0, layer)


def _product(
    adapter_id: str, path: str, pair: tuple[torch.Tensor, torch.Tensor], config: dict[str, Any], layer: LinearLayer
) -> LinearUpdate:
    """An update that LyCORIS' rule scales: alpha / r."""
    b, a = pair
    a, b = _matrices(adapter_id, path, a, b, layer)
    rank = _setting(adapter_id, config, "rank_pattern", path, "r")
    if type(rank) is not int or rank < 1:
        raise refusal(adapter_id, f"r is {rank!r} for {path} in {CONFIG_FILE}; it must be at least 1")
    alpha = _alpha(adapter_id, path, _setting(adapter_id, config, "alpha_pattern", path, "alpha"), "alpha")
    return _low_rank(adapter_id, path, a, b, alpha / rank, layer)


def _pair(adapter_id: str, path: str, parts: Parts, b: str, a: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices whose product is one, in float32."""
    left, right = _matrix(adapter_id, path, parts, b), _matrix(adapter_id, path, parts, a)
    if left.shape[1] != right.shape[0]:
        raise refusal(adapter_id, f"{b} and {a} of {path} have the shapes {left.shape} and {right.shape}")
    return left, right


def _matrix(adapter_id: str, path: str, parts: Parts, name: str) -> torch.Tensor:
    matrix = parts.get(name)
    if matrix is None or matrix.ndim != 2:
        raise refusal(adapter_id, f"{path} needs a matrix {name}")
    return matrix.float()


def _ia3(adapter_id: str, path: str, parts: Parts, _config: dict[str, Any], layer: LinearLayer) -> LinearUpdate:
    """IA3's vector: [1, in_features] for a feed-forward layer's inputs, [out_features, 1] for another's outputs.

    PEFT's forward scales the outputs with their bias.
    """
    vector = parts.get("ia3_l")
    if vector is None or vector.ndim != 2 or 1 not in vector.shape:
        raise refusal(adapter_id, f"{path} needs an ia3_l of shape (1, in_features) or (out_features, 1)")
    of_inputs = vector.shape[0] == 1
    features = vector.numel()
    check_sizes(adapter_id, path, layer, **{"inputs" if of_inputs else "outputs": features})
    scale = _scale(adapter_id, path, vector.flatten(), layer)
    return LinearUpdate(input_scale=scale) if of_inputs else LinearUpdate(output_scale=scale)


_READERS: dict[str, Callable[[str, str, Parts, dict[str, Any], LinearLayer], LinearUpdate]] = {
    "LORA": _lora,
    "ADALORA": _adalora,
    "LOHA": _loha,
    "LOKR": _lokr,
    "VERA": _vera,
    "IA3": _ia3,
}


def _matrices(
    adapter_id: str, path: str, a: torch.Tensor | None, b: torch.Tensor | None, layer: LinearLayer
) -> tuple[torch.Tensor, torch.Tensor]:
    """A of shape [rank, in_features] and B of shape [out_features, rank]."""
    if a is None or b is None:
        raise refusal(adapter_id, f"{path} has only one of lora_A and lora_B")
    if a.ndim != 2 or b.ndim != 2:
        raise refusal(adapter_id, f"lora_A and lora_B of {path} must be matrices")
    check_sizes(adapter_id, path, layer, inputs=a.shape[1], outputs=b.shape[0])
    if a.shape[0] != b.shape[1]:
        raise refusal(adapter_id, f"lora_A of {path} has rank {a.shape[0]}, lora_B {b.shape[1]}; they must be equal")
    return a, b


def _low_rank(
    adapter_id: str,
    path: str,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    layer: LinearLayer,
    *,
    magnitude: torch.Tensor | None = None,
) -> LinearUpdate:
    """scaling * B A, with DoRA's `magnitude` if it has one: y = magnitude / ||W + scaling B A|| * (...) + bias."""
    dtype, pin = layer_dtype(layer), layer.weight.is_cuda
    ready_a = ready_to_copy(adapter_id, path, a.float(), dtype, pin=pin)
    ready_b = ready_to_copy(adapter_id, path, (b.float() * scaling).t(), dtype, pin=pin)
    if magnitude is None:
        return LinearUpdate(a=ready_a, b=ready_b)
    if has_four_bits(layer):
        raise refusal(adapter_id, f"DoRA of {path} needs the model's weights, which are held in 4 bits")
    if magnitude.ndim != 1:
        raise refusal(adapter_id, f"lora_magnitude_vector of {path} must be a vector, one value for each output")
    check_sizes(adapter_id, path, layer, outputs=len(magnitude))
    scale = magnitude.float() / _column_norms(layer, a.float(), b.float(), scaling)
    shift = None
    if layer.bias is not None:
        shift = _scale(adapter_id, path, layer.bias.detach().float().cpu() * (1 - scale), layer)
    return LinearUpdate(ready_a, ready_b, output_scale=_scale(adapter_id, path, scale, layer), output_shift=shift)


@torch.no_grad()
def _column_norms(layer: LinearLayer, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """[out_features], float32, on the host: the norm of each output's weights with the update in them.

    In float32, as PEFT computes it: it keeps an adapter's weights in that, whatever the base's dtype.
    """
    weight = layer.weight.detach()
    weight = weight.t() if isinstance(layer, Conv1D) else weight
    a, b = a.to(weight.device), b.to(weight.device)
    norms = [
        torch.linalg.norm(rows.float() + scaling * (part @ a), dim=1)
        for rows, part in zip(weight.split(NORM_ROWS), b.split(NORM_ROWS), strict=True)
    ]
    return torch.cat(norms).cpu()


def _scale(adapter_id: str, path: str, values: torch.Tensor, layer: LinearLayer) -> torch.Tensor:
    return ready_to_copy(adapter_id, path, values, torch.float32, pin=layer.weight.is_cuda)


def _alpha(adapter_id: str, path: str, alpha: Any, name: str = "lora_alpha") -> float:
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise refusal(adapter_id, f"{name} is {alpha!r} for {path}; it must be a number")
    return alpha


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
