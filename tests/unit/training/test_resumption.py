"""The golden rule of training: resumed equals uninterrupted, bit for bit in fp32."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tandem.errors import AttemptStopped, Cancelled, Draining, Paused
from tests.unit.training.interrupted import CALLS, EXACTING, OF_THE_MACHINE, Shelf, comparable, stop_at
from tests.unit.training.test_loop import Server
from tests.unit.training.tiny import run_training, tiny_llama
from worker.training.turns import Turns

ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class Uninterrupted:
    outcome: dict[str, Any]
    adapter: bytes
    events: list[dict[str, Any]]


def told(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without what depends on the machine's speed."""
    return [{name: value for name, value in event.items() if name not in OF_THE_MACHINE} for event in events]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    folder = tmp_path_factory.mktemp("uninterrupted")
    events: list[dict[str, Any]] = []
    outcome = run_training(tiny_llama(), folder, on_event=events.append, **EXACTING)
    return Uninterrupted(comparable(outcome), (folder / ADAPTER).read_bytes(), told(events))


def interrupt(call: int, folder: Path, reason: type[AttemptStopped] = Draining, **options: Any) -> Shelf:
    """Train until `check` is called for the `call`-th time."""
    shelf = Shelf(folder / "shelf")
    with pytest.raises(reason):
        run_training(
            tiny_llama(),
            folder / "unfinished",
            check=stop_at(call, reason),
            on_checkpoint=shelf,
            **EXACTING,
            **options,
        )
    return shelf


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_drained_training_goes_on_as_if_nothing_had_been(
    call: int, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    """Wherever it is stopped: the same adapter, losses, tokens and history; and what is told after the resumption is
    what had not been told before."""
    shelf = interrupt(call, tmp_path)
    assert len(shelf.steps) == (call > 1), "before there is a model there is nothing to keep"
    torch.rand(100)  # another worker's generator stands elsewhere
    events: list[dict[str, Any]] = []
    outcome = run_training(
        tiny_llama(), tmp_path / "adapter", resume_from=shelf.last, on_event=events.append, **EXACTING
    )
    assert comparable(outcome) == uninterrupted.outcome
    assert (tmp_path / "adapter" / ADAPTER).read_bytes() == uninterrupted.adapter
    assert events.pop(0)["type"] == "data"
    if shelf.last is not None:
        assert events[0] == {"type": "resumed", "step": shelf.steps[-1]}
        rest = told(events[1:])
        assert rest == uninterrupted.events[len(uninterrupted.events) - len(rest) :]


def test_a_paused_training_is_kept_too(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    shelf = interrupt(8, tmp_path, Paused)
    assert shelf.steps == [2]
    run_training(tiny_llama(), tmp_path / "adapter", resume_from=shelf.last, **EXACTING)
    assert (tmp_path / "adapter" / ADAPTER).read_bytes() == uninterrupted.adapter


def test_a_cancelled_training_keeps_nothing(tmp_path: Path) -> None:
    assert interrupt(8, tmp_path, Cancelled).steps == []


def test_a_training_that_is_drained_again_and_again_comes_to_the_same(
    uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    """Each attempt gets as far as its fourth check, and the next one goes on from there."""
    shelf = Shelf(tmp_path / "shelf")
    attempts = 0
    while True:
        attempts += 1
        try:
            outcome = run_training(
                tiny_llama(),
                tmp_path / "adapter",
                resume_from=shelf.last,
                on_checkpoint=shelf,
                check=stop_at(4),
                **EXACTING,
            )
        except Draining:
            assert attempts < 12, f"no progress: {shelf.steps}"
        else:
            break
    assert attempts > 5
    assert comparable(outcome) == uninterrupted.outcome
    assert (tmp_path / "adapter" / ADAPTER).read_bytes() == uninterrupted.adapter


def test_another_process_goes_on(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """Everything is in the folder: nothing of the process that wrote it is needed."""
    shelf = interrupt(13, tmp_path)
    command = [sys.executable, "-m", "tests.unit.training.interrupted", str(shelf.last), str(tmp_path / "adapter")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "adapter" / ADAPTER).read_bytes() == uninterrupted.adapter


def test_serving_in_between_changes_nothing(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """Both halves are trained beside a thread that serves at every boundary and draws random numbers."""
    resident, turns, shelf = tiny_llama(), Turns(quantum_seconds=0.0), Shelf(tmp_path / "shelf")
    with Server(resident, turns) as server:
        with pytest.raises(Draining):
            run_training(
                resident, tmp_path / "adapter", turns=turns, check=stop_at(13), on_checkpoint=shelf, **EXACTING
            )
        run_training(resident, tmp_path / "adapter", turns=turns, resume_from=shelf.last, **EXACTING)
    assert len(server.logits) > 20
    assert (tmp_path / "adapter" / ADAPTER).read_bytes() == uninterrupted.adapter


def test_a_lost_training_goes_on_from_its_last_checkpoint(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """A worker that is killed keeps nothing more: what came after its last checkpoint is trained again."""
    shelf = interrupt(18, tmp_path, Cancelled, save_steps=4)
    assert shelf.steps == [4]
    settings = {**EXACTING, "save_steps": 4}
    events: list[dict[str, Any]] = []
    outcome = run_training(
        tiny_llama(), tmp_path / "adapter", resume_from=shelf.last, on_event=events.append, **settings
    )
    assert [event["step"] for event in events if event["type"] == "progress"] == [5, 6, 7]
    assert comparable(outcome) == uninterrupted.outcome
    assert (tmp_path / "adapter" / ADAPTER).read_bytes() == uninterrupted.adapter


def test_checkpoints_are_kept_every_so_many_steps(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """Once each, before an evaluation that follows the step; and they change nothing."""
    shelf, events = Shelf(tmp_path / "shelf"), []
    settings = {**EXACTING, "save_steps": 3}

    def shelve(folder: Path, step: int) -> None:
        events.append({"type": "checkpoint", "step": step})
        shelf(folder, step)

    run_training(tiny_llama(), tmp_path / "adapter", on_checkpoint=shelve, on_event=events.append, **settings)
    assert shelf.steps == [3, 6]
    told_at_three = [event["type"] for event in events if event.get("step") == 3]
    assert told_at_three == ["progress", "checkpoint", "evaluation"]
    assert (tmp_path / "adapter" / ADAPTER).read_bytes() == uninterrupted.adapter


def test_checkpoints_are_kept_every_so_many_seconds(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    run_training(tiny_llama(), tmp_path / "adapter", on_checkpoint=shelf, save_seconds=0.0, max_steps=4)
    assert shelf.steps == [1, 2, 3]


def test_a_resumption_that_is_stopped_at_once_writes_nothing_new(tmp_path: Path) -> None:
    """What it came from is still all that there is."""
    first = interrupt(8, tmp_path)
    second = Shelf(tmp_path / "second")
    with pytest.raises(Draining):
        run_training(
            tiny_llama(),
            tmp_path / "adapter",
            resume_from=first.last,
            on_checkpoint=second,
            check=stop_at(2),
            **EXACTING,
        )
    assert second.steps == []


def test_the_time_of_all_attempts_counts(tmp_path: Path) -> None:
    shelf = interrupt(20, tmp_path)
    outcome = run_training(tiny_llama(), tmp_path / "adapter", resume_from=shelf.last, **EXACTING)
    alone = run_training(tiny_llama(), tmp_path / "rest", max_steps=1)
    assert outcome.seconds > alone.seconds
