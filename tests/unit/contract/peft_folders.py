"""PEFT folders and zip files for tests of what a stranger may send: good ones, and each with one fault."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
LORA_CONFIG: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}
LORA_SHAPES: dict[str, tuple[int, ...]] = {
    f"{Q_PROJ}.lora_A.weight": (4, 16),
    f"{Q_PROJ}.lora_B.weight": (16, 4),
}
"""For a model of width 16."""
BASE_SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (32, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.mlp.down_proj.weight": (16, 24),
}
BASE_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A file of float32 zeros, written by the library itself."""
    return save({name: numpy.zeros(shape, numpy.float32) for name, shape in shapes.items()})


def adapter_files(
    config: Mapping[str, Any] = LORA_CONFIG, shapes: Mapping[str, tuple[int, ...]] = LORA_SHAPES
) -> dict[str, bytes]:
    """What PEFT's `save_pretrained` writes, by file names."""
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": safetensors(shapes),
        "README.md": b"---\nlibrary_name: peft\n---\n",
    }


def zipped(files: Mapping[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A folder with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_base(
    folder: Path, shapes: Mapping[str, tuple[int, ...]] = BASE_SHAPES, config: Mapping[str, Any] = BASE_CONFIG
) -> Path:
    """A base model's folder, whose weights are zeros."""
    return write(folder, {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors(shapes)})
