"""Models are loaded from folders, side by side, and refused with a reason."""

import json
import threading
from pathlib import Path

import pytest
import torch

from tandem.catalogue import CatalogueEntry
from tandem.errors import InvalidModel
from tandem.settings import Settings, WorkerSettings
from worker.loading import Loader, ResidentModel
from worker.stall import StallWatch
from worker.training.turns import Turns

WHEEL_MODELS = {
    "smollm2-135m-instruct": "text-generation",
    "all-minilm-l6-v2": "feature-extraction",
    "minilm-topics": "text-classification",
}


@pytest.fixture
def loader() -> Loader:
    settings = WorkerSettings(sequence_slots=2, slot_tokens=64)
    return Loader(settings, torch.device("cpu"), Turns(0.0), StallWatch(60.0, pytest.fail))


def entry(name: str, folder: Path) -> CatalogueEntry:
    return CatalogueEntry.model_validate(
        {"name": name, "tasks": [WHEEL_MODELS.get(name, "fill-mask")], "folder": folder}
    )


def test_models_loaded_at_the_same_time_are_whole(loader: Loader) -> None:
    """Symptom: after three first jobs at once, every load failed with "Cannot copy out of meta tensor".

    Cause: `from_pretrained` patches torch for the whole process, so a second one beside it built meta tensors.
    Fix: one load at a time.
    """
    loaded: list[ResidentModel] = []
    start = threading.Barrier(len(WHEEL_MODELS))

    def load(name: str, task: str) -> None:
        start.wait()
        loaded.append(loader.load(entry(name, Settings().models_dir / name), task))

    threads = [threading.Thread(target=load, args=model) for model in WHEEL_MODELS.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {resident.entry.name for resident in loaded} == set(WHEEL_MODELS)
    assert [p for resident in loaded for p in resident.model.parameters() if p.is_meta or p.requires_grad] == []
    for resident in loaded:
        resident.close()


def test_a_folder_without_safetensors_is_refused_with_the_fix(loader: Loader, tmp_path: Path) -> None:
    """Pickled weights are never loaded."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InvalidModel, match=r"no \*\.safetensors in .*; run `make install`"):
        loader.measure(entry("pickled", tmp_path), "text-generation")


def test_a_broken_folder_is_the_models_error(loader: Loader, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    with pytest.raises(InvalidModel, match="model 'broken' cannot be loaded from"):
        loader.load(entry("broken", tmp_path), "fill-mask")
