"""What a checkpoint is made of, and what becomes of one that is damaged or another training's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tandem.errors import Draining, InvalidRequest, Superseded
from tandem.specs import LoraMethod
from tests.unit.training.interrupted import EXACTING, Shelf, comparable, stop_at
from tests.unit.training.tiny import chatml_tokenizer, colour_rows, encode_texts, run_training, tiny_llama
from worker.training.checkpoint import CHECKPOINT_FILES, RECORD_FILE, TENSORS_FILE
from worker.training.encoding import data_digest
from worker.training.loop import TrainingOutcome

TRAINER_STATE_FILE = "trainer_state.json"


@pytest.fixture(scope="module")
def drained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a training that was drained in its fourth step."""
    folder = tmp_path_factory.mktemp("drained")
    shelf = Shelf(folder / "shelf")
    with pytest.raises(Draining):
        run_training(tiny_llama(), folder / "adapter", check=stop_at(11), on_checkpoint=shelf, **EXACTING)
    assert shelf.steps == [3]
    assert shelf.last is not None
    return shelf.last


@pytest.fixture
def checkpoint(drained: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(drained, tmp_path / "checkpoint"))


def resume(checkpoint: Path, folder: Path, **changes: Any) -> tuple[TrainingOutcome, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    outcome = run_training(
        tiny_llama(), folder, resume_from=checkpoint, on_event=events.append, **{**EXACTING, **changes}
    )
    assert events.pop(0)["type"] == "data"
    return outcome, events


def test_a_checkpoint_is_safetensors_and_json(checkpoint: Path) -> None:
    """Adapter weights in fp32 as they are trained, two moments and a step count for each, and the random state."""
    assert {path.name for path in checkpoint.iterdir()} == set(CHECKPOINT_FILES)
    tensors = load_file(checkpoint / TENSORS_FILE)
    adapter = {name: tensor for name, tensor in tensors.items() if name.startswith("adapter/")}
    assert len(adapter) == 3 * 2 * 2, "A and B of two projections in three layers"
    for name, tensor in adapter.items():
        parameter = name.removeprefix("adapter/")
        assert tensor.dtype == torch.float32
        for moment in ("exp_avg", "exp_avg_sq"):
            assert tensors[f"optimizer/{parameter}/{moment}"].shape == tensor.shape
        assert tensors[f"optimizer/{parameter}/step"] == 3.0
    assert tensors["random/0"].dtype == torch.uint8
    assert len(tensors) == 4 * len(adapter) + 1
    assert json.loads((checkpoint / TRAINER_STATE_FILE).read_text())["global_step"] == 3
    assert json.loads((checkpoint / RECORD_FILE).read_text())["course"]["step"] == 3


def test_nothing_pickled_is_read_or_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where Trainer would find its own files."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle")

    for name in ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "adapter_model.bin"):
        (checkpoint / name).write_bytes(b"not to be read")
    for target in ("torch.load", "torch.save", "pickle.load", "pickle.loads", "pickle.dump", "pickle.dumps"):
        monkeypatch.setattr(target, refuse)
    _, events = resume(checkpoint, tmp_path / "adapter")
    assert events[0] == {"type": "resumed", "step": 3}


def flip_a_bit(checkpoint: Path) -> None:
    content = bytearray((checkpoint / TENSORS_FILE).read_bytes())
    content[-1] ^= 1
    (checkpoint / TENSORS_FILE).write_bytes(content)


def cut_tensors(checkpoint: Path) -> None:
    content = (checkpoint / TENSORS_FILE).read_bytes()
    (checkpoint / TENSORS_FILE).write_bytes(content[: len(content) // 2])


def cut_record(checkpoint: Path) -> None:
    (checkpoint / RECORD_FILE).write_text((checkpoint / RECORD_FILE).read_text()[:-20])


def garble_record(checkpoint: Path) -> None:
    (checkpoint / RECORD_FILE).write_bytes(b"\xff\xfe\x00")


def lose_trainer_state(checkpoint: Path) -> None:
    (checkpoint / TRAINER_STATE_FILE).unlink()


def move_the_step(checkpoint: Path) -> None:
    path = checkpoint / TRAINER_STATE_FILE
    path.write_text(path.read_text().replace('"global_step": 3', '"global_step": 5'))


def raise_the_format(checkpoint: Path) -> None:
    record = json.loads((checkpoint / RECORD_FILE).read_text())
    (checkpoint / RECORD_FILE).write_text(json.dumps({**record, "format": 3}))


@pytest.mark.parametrize(
    "harm",
    [flip_a_bit, cut_tensors, cut_record, garble_record, lose_trainer_state, move_the_step, raise_the_format],
    ids=lambda harm: harm.__name__,
)
def test_a_damaged_checkpoint_costs_time_and_not_the_job(
    harm: Callable[[Path], None], checkpoint: Path, tmp_path: Path
) -> None:
    """The training starts anew, says why, and comes to the same result."""
    harm(checkpoint)
    outcome, events = resume(checkpoint, tmp_path / "adapter", max_steps=2)
    assert events[0]["type"] == "warning"
    assert "starts anew" in events[0]["message"]
    expected = run_training(tiny_llama(), tmp_path / "expected", **{**EXACTING, "max_steps": 2})
    assert comparable(outcome) == comparable(expected)


def test_another_base_starts_anew(checkpoint: Path, tmp_path: Path) -> None:
    """A worker with another revision of the model, or in another precision, has other weights under the adapter."""
    _, events = resume(checkpoint, tmp_path / "revised", base_revision="v2")
    assert events[0]["type"] == "warning"
    assert "revision='v2'" in events[0]["message"]
    assert [event["step"] for event in events if event["type"] == "progress"] == list(range(1, 8))

    events = []
    settings = {**EXACTING, "max_steps": 7}
    run_training(
        tiny_llama(dtype=torch.bfloat16),
        tmp_path / "bfloat16",
        resume_from=checkpoint,
        on_event=events.append,
        **settings,
    )
    assert "torch.bfloat16" in events[1]["message"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"rows": colour_rows()[1:]}, "rows"),
        ({"validation_rows": colour_rows()[:2]}, "rows"),
        ({"max_tokens": 12}, "rows"),
        ({"method": LoraMethod(dropout=0.1)}, "method"),
        ({"learning_rate": 2e-2}, "hyperparameters"),
        ({"seed": 1}, "hyperparameters"),
    ],
)
def test_another_trainings_checkpoint_is_refused(
    changes: dict[str, Any], what: str, checkpoint: Path, tmp_path: Path
) -> None:
    """Going on with other data or settings would be a training that nobody asked for."""
    with pytest.raises(InvalidRequest, match=f"a training with other {what}") as raised:
        resume(checkpoint, tmp_path / "adapter", **changes)
    assert raised.value.param == "resume_from"
    assert not (tmp_path / "adapter").exists()


def test_data_differs_by_any_token_label_or_border() -> None:
    tokenizer = chatml_tokenizer()
    rows = colour_rows()
    whole = encode_texts(rows, tokenizer, 200)
    digests = {
        data_digest(whole, None),
        data_digest(whole, whole),
        data_digest(encode_texts(rows[::-1], tokenizer, 200), None),
        data_digest(encode_texts(rows[:-1], tokenizer, 200), None),
        data_digest(encode_texts(rows[:-1], tokenizer, 200), encode_texts(rows[-1:], tokenizer, 200)),
    }
    assert len(digests) == 5
    assert data_digest(encode_texts(rows, chatml_tokenizer(), 200), None) in digests


def test_a_checkpoint_that_cannot_be_stored_does_not_end_the_training(tmp_path: Path) -> None:
    """The disk is full, or the storage away: the training goes on, says so, and tries again at the next occasion."""
    events: list[dict[str, Any]] = []
    tries: list[int] = []

    def fail_once(folder: Path, step: int) -> None:
        tries.append(step)
        if len(tries) == 1:
            raise OSError("no space left on device")

    outcome = run_training(
        tiny_llama(),
        tmp_path / "adapter",
        on_checkpoint=fail_once,
        on_event=events.append,
        save_steps=1,
    )
    assert outcome.steps == 3
    assert tries == [1, 2]
    warnings = [event for event in events if event["type"] == "warning"]
    assert warnings == [
        {
            "type": "warning",
            "step": 1,
            "message": "the checkpoint of step 1 could not be kept: no space left on device",
        }
    ]


def test_a_drain_whose_checkpoint_cannot_be_stored_is_still_a_drain(tmp_path: Path) -> None:
    """Not a failure of the job: it goes back to its queue, and on from what was stored before."""

    def fail(folder: Path, step: int) -> None:
        raise OSError("no space left on device")

    with pytest.raises(Draining):
        run_training(tiny_llama(), tmp_path / "adapter", on_checkpoint=fail, check=stop_at(3))


def test_a_superseded_attempt_stops_at_its_checkpoint(tmp_path: Path) -> None:
    """Another worker has the job: what this one would keep is refused, and it must stop."""

    def refuse(folder: Path, step: int) -> None:
        raise Superseded

    with pytest.raises(Superseded):
        run_training(tiny_llama(), tmp_path / "adapter", on_checkpoint=refuse, save_steps=1)
    assert not (tmp_path / "adapter").exists()


def test_no_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is whole while it is handed over, and gone afterwards."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: list[Path] = []

    def look(folder: Path, step: int) -> None:
        assert {path.name for path in folder.iterdir()} == set(CHECKPOINT_FILES)
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
        seen.append(folder)

    run_training(tiny_llama(), tmp_path / "adapter", on_checkpoint=look, save_steps=1)
    assert len(seen) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
