"""Adapters as the engine takes them, over the tiny Llama."""

from pathlib import Path

from tests.unit.engine.adapter_folders import save_adapter
from tests.unit.engine.tiny_models import FAMILIES, build_model
from worker.engine.adapters.weights import AdapterWeights, read_adapter


def served_adapter(folder: Path, name: str, *, seed: int) -> AdapterWeights:
    """A LoRA with random weights, written by PEFT and read for the engine."""
    save_adapter(
        build_model(FAMILIES["llama"]()),
        folder / name,
        seed=seed,
        r=4,
        target_modules=["q_proj", "v_proj", "up_proj"],
    )
    return read_adapter(name, folder / name, build_model(FAMILIES["llama"]()))
