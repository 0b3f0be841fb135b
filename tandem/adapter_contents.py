"""What the files of a PEFT folder say of an adapter, read without torch: its kind, its task, and what it changes."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tandem.adapter_layers import CHANGES, LayerChange, refusal
from tandem.errors import UnsupportedTask
from tandem.safetensors_header import NotSafetensors, TensorInfo, read_header
from tandem.specs.finetune import HEADED_TASKS, FineTuneTask
from tandem.specs.methods import MAX_VIRTUAL_TOKENS
from tandem.specs.peft_config import (
    APART_METHODS,
    CONFIG_FILE,
    KEY_PREFIX,
    LAYER_PARTS,
    LINEAR_METHODS,
    MAX_QUOTED,
    MODEL_CONFIG_FILE,
    PREFIX_METHODS,
    SHARED_PARTS,
    WEIGHTS_FILE,
    unserved,
)

TASKS: dict[str | None, FineTuneTask] = {
    None: "text-generation",
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "FEATURE_EXTRACTION": "feature-extraction",
}
"""PEFT's task type → the task that its adapters do."""
HEAD_FIELDS = frozenset({"modules_to_save"})
"""Fields of an adapter with a head that say which parts of the head were trained; the weights' keys say the same."""

PROMPT_KEY = "prompt_embeddings"
COPIED_BASE = ".base_layer.weight"
"""What PEFT saves of the base beside an adapter of its head; the worker compares it with the base's own."""
_PARTS = sorted({part for needed, allowed in LAYER_PARTS.values() for part in needed | allowed})
LAYER_KEY = re.compile(rf"{re.escape(KEY_PREFIX)}(?P<path>.+)\.(?P<part>{'|'.join(map(re.escape, _PARTS))})")
SCALES = {"LORA": "lora_alpha", "ADALORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""Kind → the config's number that scales its updates."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


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
    has_head = task in HEADED_TASKS
    layers = _layers(peft_type, tensors, config, has_head=has_head)
    labels, model_type = _trained_model(folder, task) if has_head else ((), None)
    return AdapterContents(peft_type, task, layers, labels=labels, model_type=model_type)


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
        reason = unserved(config, methods={**LINEAR_METHODS, **APART_METHODS, **PREFIX_METHODS})
    elif task == "text2text-generation":
        reason = unserved(config, methods={**LINEAR_METHODS, **APART_METHODS})
    else:
        also_served = HEAD_FIELDS if task in HEADED_TASKS else frozenset()
        reason = unserved(config, methods=LINEAR_METHODS, also_served=also_served)
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
        if key in SHARED_PARTS.get(peft_type, ()):
            continue
        if match is not None:
            parts.setdefault(match["path"], {})[match["part"]] = tensor.shape
        elif not key.startswith(KEY_PREFIX) or not (has_head or key.endswith(COPIED_BASE)):
            raise refusal(f"{WEIGHTS_FILE} has the unknown key {key[:MAX_QUOTED]}")
    if not parts and not has_head:
        raise refusal(f"{WEIGHTS_FILE} holds no weights of a {peft_type} adapter")
    if missing := SHARED_PARTS.get(peft_type, frozenset()) - tensors.keys():
        raise refusal(f"{WEIGHTS_FILE} lacks {', '.join(sorted(missing))}: save it with save_projection=True")
    needed, allowed = LAYER_PARTS[peft_type]
    changes = {}
    for path, shapes in parts.items():
        if not needed <= shapes.keys() <= needed | allowed:
            raise refusal(
                f"{path[:MAX_QUOTED]} has {', '.join(sorted(shapes))}; a {peft_type} adapter has "
                f"{', '.join(sorted(needed))} for each layer"
            )
        changes[path] = CHANGES[peft_type](path, shapes)
    _check_settings(peft_type, config, changes)
    return changes


def _check_settings(peft_type: str, config: Mapping[str, Any], layers: Mapping[str, LayerChange]) -> None:
    """What scales the low-rank updates; patterns for single layers are the worker's to read."""
    if peft_type not in SCALES:
        return
    alpha = config.get(SCALES[peft_type])
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise refusal(f"{SCALES[peft_type]} in {CONFIG_FILE} is {_quoted(alpha)}; it must be a number")
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
