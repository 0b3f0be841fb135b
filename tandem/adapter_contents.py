"""What the files of a PEFT folder say of an adapter, read without torch: its kind, its task, and what it changes."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tandem.adapter_archive import CONFIG_FILE, MODEL_CONFIG_FILE, WEIGHTS_FILE
from tandem.errors import InvalidRequest, UnsupportedTask
from tandem.safetensors_header import NotSafetensors, TensorInfo, read_header
from tandem.specs.finetune import FineTuneTask
from tandem.specs.methods import MAX_LORA_RANK, MAX_VIRTUAL_TOKENS
from tandem.specs.peft_config import LINEAR_METHODS, MAX_QUOTED, PREFIX_METHODS, unserved

TASKS: dict[str | None, FineTuneTask] = {
    None: "text-generation",
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
}
"""PEFT's task type → the task that its adapters do."""
HEAD_FIELDS = frozenset({"modules_to_save"})
"""Fields of an adapter with a head that say which parts of the head were trained; the weights' keys say the same."""

KEY_PREFIX = "base_model.model."
"""PEFT's wrappers around the model, which stand before every module's path in the weights' keys."""
PROMPT_KEY = "prompt_embeddings"
COPIED_BASE = ".base_layer.weight"
"""What PEFT saves of the base beside an adapter of its head; the worker compares it with the base's own."""
LAYER_KEY = re.compile(
    re.escape(KEY_PREFIX) + r"(?P<path>.+)\.(?P<part>lora_[AB](?:\.weight)?|lora_E|lora_magnitude_vector|ia3_l)"
)
PARTS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "LORA": (frozenset({"lora_A.weight", "lora_B.weight"}), frozenset({"lora_magnitude_vector"})),
    "ADALORA": (frozenset({"lora_A", "lora_B", "lora_E"}), frozenset()),
    "IA3": (frozenset({"ia3_l"}), frozenset()),
}
"""Kind → the tensors that it has for every layer, and those that it may have besides."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class LayerChange:
    """An adapter's weights for one linear layer; a size that they do not tell is None."""

    in_features: int | None
    out_features: int | None
    rank: int = 0
    """0 for factors, which have none."""


@dataclass(frozen=True, slots=True)
class VirtualTokens:
    """Trained positions before the text."""

    count: int
    width: int
    """Numbers for each: a hidden state's, or the keys and values of every layer."""


@dataclass(frozen=True, slots=True)
class AdapterContents:
    peft_type: str
    """PEFT's name for the kind."""
    task: FineTuneTask
    layers: Mapping[str, LayerChange] = field(default_factory=dict)
    """By the layer's path in the model that was trained."""
    virtual_tokens: VirtualTokens | None = None
    labels: tuple[str, ...] = ()
    """What a classifier's outputs mean, in order."""
    model_type: str | None = None
    """The architecture of the model that a head was trained on."""

    @property
    def rank(self) -> int | None:
        """The largest, if there is one."""
        return max((layer.rank for layer in self.layers.values()), default=0) or None

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The last names of the changed layers, such as `q_proj`."""
        return tuple(sorted({path.rpartition(".")[2] for path in self.layers}))


def read_contents(folder: Path) -> AdapterContents:
    """Read the files that adapter_archive.py takes.

    Raises InvalidRequest or UnsupportedTask (param `file`), naming the file, the key or the field at fault.
    """
    config = _json_object(folder / CONFIG_FILE)
    task = _task(config)
    _check_config(config, task)
    peft_type = config["peft_type"]
    try:
        tensors = read_header(folder / WEIGHTS_FILE)
    except NotSafetensors as error:
        raise refusal(f"{WEIGHTS_FILE} is no safetensors file: {error}") from error
    for key, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise refusal(f"{key[:MAX_QUOTED]} has the dtype {tensor.dtype}; it must be one of {sorted(FLOATS)}")
    if peft_type in PREFIX_METHODS:
        return AdapterContents(peft_type, task, virtual_tokens=_virtual_tokens(tensors, config))
    has_head = task != "text-generation"
    layers = _layers(peft_type, tensors, config, has_head=has_head)
    labels, model_type = _trained_model(folder, task) if has_head else ((), None)
    return AdapterContents(peft_type, task, layers, labels=labels, model_type=model_type)


def refusal(reason: str) -> InvalidRequest:
    """The error of an adapter whose files cannot be served."""
    return InvalidRequest(f"the adapter cannot be served: {reason}", param="file")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise refusal(f"{path.name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise refusal(f"{path.name} is not a JSON object")
    return value


def _check_config(config: Mapping[str, Any], task: FineTuneTask) -> None:
    """Raise InvalidRequest for a kind or an option that is not served; virtual tokens are for language models."""
    if task == "text-generation":
        reason = unserved(config, methods={**LINEAR_METHODS, **PREFIX_METHODS})
    else:
        reason = unserved(config, methods=LINEAR_METHODS, also_served=HEAD_FIELDS)
    if reason is not None:
        raise refusal(f"by {CONFIG_FILE}, {reason}")


def _task(config: Mapping[str, Any]) -> FineTuneTask:
    task_type = config.get("task_type")
    if not isinstance(task_type, str | None) or task_type not in TASKS:
        served = ", ".join(name for name in TASKS if name is not None)
        raise UnsupportedTask(
            f"the adapter cannot be served: task_type in {CONFIG_FILE} is {_quoted(task_type)}; served are {served}",
            param="file",
        )
    return TASKS[task_type]


def _virtual_tokens(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> VirtualTokens:
    if set(tensors) != {PROMPT_KEY}:
        keys = ", ".join(sorted(tensors))[:MAX_QUOTED]
        raise refusal(f"{WEIGHTS_FILE} must hold {PROMPT_KEY} and nothing else; it holds {keys}")
    shape, count = tensors[PROMPT_KEY].shape, config.get("num_virtual_tokens")
    if type(count) is not int or not 1 <= count <= MAX_VIRTUAL_TOKENS:
        raise refusal(f"num_virtual_tokens is {_quoted(count)}; it must be from 1 to {MAX_VIRTUAL_TOKENS}")
    if len(shape) != 2 or shape[0] != count or shape[1] < 1:
        raise refusal(f"{PROMPT_KEY} has the shape {shape}; num_virtual_tokens says that it has {count} rows")
    return VirtualTokens(count, shape[1])


def _layers(
    peft_type: str, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], *, has_head: bool
) -> dict[str, LayerChange]:
    """The changed layers by their paths. With a head, other keys are its weights, which the worker checks."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, tensor in tensors.items():
        match = LAYER_KEY.fullmatch(key)
        if match is not None:
            parts.setdefault(match["path"], {})[match["part"]] = tensor.shape
        elif not key.startswith(KEY_PREFIX) or not (has_head or key.endswith(COPIED_BASE)):
            raise refusal(f"{WEIGHTS_FILE} has the unknown key {key[:MAX_QUOTED]}")
    if not parts and not has_head:
        raise refusal(f"{WEIGHTS_FILE} holds no weights of a {peft_type} adapter")
    needed, allowed = PARTS[peft_type]
    changes = {}
    for path, shapes in parts.items():
        if not needed <= shapes.keys() <= needed | allowed:
            raise refusal(
                f"{path[:MAX_QUOTED]} has {', '.join(sorted(shapes))}; a {peft_type} adapter has "
                f"{', '.join(sorted(needed))} for each layer"
            )
        changes[path] = _factors(path, shapes) if peft_type == "IA3" else _low_rank(path, shapes)
    _check_settings(peft_type, config, changes)
    return changes


def _factors(path: str, shapes: Mapping[str, tuple[int, ...]]) -> LayerChange:
    """(IA)³ (Liu et al. 2022): [1, in] for a feed-forward layer's inputs, [out, 1] for another's outputs."""
    shape = shapes["ia3_l"]
    if len(shape) != 2 or 1 not in shape:
        raise refusal(f"ia3_l of {path[:MAX_QUOTED]} has the shape {shape}; it must be [1, in] or [out, 1]")
    return LayerChange(None, shape[0]) if shape[1] == 1 else LayerChange(shape[1], None)


def _low_rank(path: str, shapes: Mapping[str, tuple[int, ...]]) -> LayerChange:
    """A [rank, in] and B [out, rank]; E [rank, 1] of AdaLoRA, the outputs' magnitudes [out] of DoRA."""
    a, b = (shapes.get(f"lora_{name}.weight") or shapes.get(f"lora_{name}") or () for name in "AB")
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or min(*a, *b) < 1:
        raise refusal(f"lora_A and lora_B of {path[:MAX_QUOTED]} have the shapes {a} and {b}, which do not fit")
    rank, in_features, out_features = a[0], a[1], b[0]
    if rank > MAX_LORA_RANK:
        raise refusal(f"rank {rank} of {path[:MAX_QUOTED]} is above the limit of {MAX_LORA_RANK}")
    for name, expected in (("lora_E", (rank, 1)), ("lora_magnitude_vector", (out_features,))):
        if shapes.get(name, expected) != expected:
            raise refusal(f"{name} of {path[:MAX_QUOTED]} has the shape {shapes[name]}; it must be {expected}")
    return LayerChange(in_features, out_features, rank)


def _check_settings(peft_type: str, config: Mapping[str, Any], layers: Mapping[str, LayerChange]) -> None:
    """What scales the low-rank updates; patterns for single layers are the worker's to read."""
    if peft_type == "IA3":
        return
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise refusal(f"lora_alpha in {CONFIG_FILE} is {_quoted(alpha)}; it must be a number")
    if peft_type == "LORA" and not config.get("rank_pattern"):
        for path, layer in layers.items():
            if config.get("r") != layer.rank:
                raise refusal(
                    f"r in {CONFIG_FILE} is {_quoted(config.get('r'))}, but {path[:MAX_QUOTED]} has rank {layer.rank}"
                )


def _trained_model(folder: Path, task: FineTuneTask) -> tuple[tuple[str, ...], str]:
    """The labels and the architecture, by the trained model's config."""
    path = folder / MODEL_CONFIG_FILE
    if not path.is_file():
        raise refusal(
            f"an adapter for {task} needs {MODEL_CONFIG_FILE} beside {CONFIG_FILE}: the trained model's config, with "
            "its labels; `model.config.save_pretrained` writes it"
        )
    config = _json_object(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise refusal(f"model_type in {MODEL_CONFIG_FILE} is {_quoted(model_type)}; it must name the architecture")
    labels = config.get("id2label") or {}
    if task == "question-answering":
        return (), model_type
    expected = [str(number) for number in range(len(labels))] if isinstance(labels, dict) else []
    if not isinstance(labels, dict) or not all(isinstance(labels.get(number), str) for number in expected):
        raise refusal(f"id2label in {MODEL_CONFIG_FILE} must name the labels 0, 1, 2, …, each once")
    return tuple(labels[number] for number in expected), model_type


def _quoted(value: object) -> str:
    return repr(value)[:MAX_QUOTED]
