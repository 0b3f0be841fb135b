"""Models are loaded from folders, side by side, and refused with a reason."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tandem.catalogue import CatalogueEntry
from tandem.errors import InvalidModel
from tandem.settings import Settings, WorkerSettings
from worker.engine.kv.choice import stored_dtype
from worker.engine.kv.slots import KVShape
from worker.engine.support import kv_shape
from worker.loading import Loader
from worker.resident_model import ResidentModel
from worker.stall import StallWatch
from worker.training.turns import Turns

WHEEL_MODELS = {
    "smollm2-135m-instruct": "text-generation",
    "all-minilm-l6-v2": "feature-extraction",
    "minilm-topics": "text-classification",
}
SLOTS, SLOT_TOKENS = 2, 64


@pytest.fixture(scope="module")
def loader() -> Loader:
    settings = WorkerSettings(sequence_slots=SLOTS, slot_tokens=SLOT_TOKENS)
    return Loader(settings, torch.device("cpu"), Turns(0.0), StallWatch(60.0, pytest.fail))


def entry(name: str, folder: Path) -> CatalogueEntry:
    return CatalogueEntry.model_validate(
        {"name": name, "tasks": [WHEEL_MODELS.get(name, "fill-mask")], "folder": folder}
    )


@pytest.fixture(scope="module")
def loaded(loader: Loader) -> Iterator[list[ResidentModel]]:
    """The models of the wheels, loaded at the same time."""
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
    yield loaded
    for resident in loaded:
        resident.close()


def test_models_loaded_at_the_same_time_are_whole(loaded: list[ResidentModel]) -> None:
    """Symptom: after three first jobs at once, every load failed with "Cannot copy out of meta tensor".

    Cause: `from_pretrained` patches torch for the whole process, so a second one beside it built meta tensors.
    Fix: one load at a time.
    """
    assert {resident.entry.name for resident in loaded} == set(WHEEL_MODELS)
    assert [p for resident in loaded for p in resident.model.parameters() if p.is_meta or p.requires_grad] == []


def test_a_resident_takes_its_weights_their_copies_keys_and_values(
    loader: Loader, loaded: list[ResidentModel]
) -> None:
    """What is reckoned before it is loaded is at least what its tensors then take."""
    resident = next(resident for resident in loaded if resident.engine is not None)
    assert resident.engine is not None
    engine = resident.engine.engine
    kv = (
        SLOTS
        * SLOT_TOKENS
        * kv_shape(resident.model.config).token_bytes(stored_dtype(resident.model, cpu_kernels=True))
    )
    weights = sum(parameter.nbytes for parameter in resident.model.parameters())
    assert resident.bytes == weights + engine.packed_bytes + kv
    assert resident.bytes <= loader.measure(resident.entry, "text-generation")


def test_fewer_tokens_are_reckoned_with_less_memory(loader: Loader) -> None:
    smollm = entry("smollm2-135m-instruct", Settings().models_dir / "smollm2-135m-instruct")
    whole, short = (
        loader.measure(smollm.model_copy(update={"max_tokens": tokens}), "text-generation")
        for tokens in (SLOT_TOKENS, SLOT_TOKENS // 2)
    )
    shape = KVShape(layers=30, heads=3, head_dim=64)
    assert whole - short == SLOTS * SLOT_TOKENS // 2 * shape.token_bytes(torch.float32)


def test_a_model_whose_weights_leave_no_room_for_a_slot_is_refused_before_it_is_loaded() -> None:
    folder = Settings().models_dir / "smollm2-135m-instruct"
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    settings = WorkerSettings(model_bytes=weights + 1000, packed_linears="off")
    tight = Loader(settings, torch.device("cpu"), Turns(0.0), StallWatch(60.0, pytest.fail))
    with pytest.raises(InvalidModel, match=r"has 1000 in all .* raise TANDEM_KV_BYTES or TANDEM_MODEL_BYTES"):
        tight.measure(entry(folder.name, folder), "text-generation")


def test_a_folder_without_safetensors_is_refused_with_the_fix(loader: Loader, tmp_path: Path) -> None:
    """Pickled weights are never loaded."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InvalidModel, match=r"no \*\.safetensors in .*; run `make install`"):
        loader.measure(entry("pickled", tmp_path), "text-generation")


@pytest.mark.parametrize(
    ("task", "weights"),
    [("text-classification", "classifier.weight, classifier.bias"), ("token-classification", "classifier.weight")],
    ids=["a task of ours", "a pipeline's task"],
)
def test_a_checkpoint_without_the_tasks_head_is_refused(loader: Loader, task: str, weights: str) -> None:
    """The library would fill the head in at random, tell a log of it, and answer."""
    minilm = entry("all-minilm-l6-v2", Settings().models_dir / "all-minilm-l6-v2")
    with pytest.raises(InvalidModel, match=f"no head for {task}: its files lack {weights}.*fine-tune an adapter"):
        loader.load(minilm, task)


def test_a_broken_folder_is_the_models_error(loader: Loader, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    with pytest.raises(InvalidModel, match="model 'broken' cannot be loaded from"):
        loader.load(entry("broken", tmp_path), "fill-mask")
