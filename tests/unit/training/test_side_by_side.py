"""Several trainings at once in one process: each gives, bit for bit, what it gives alone."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tandem.errors import Cancelled
from tandem.specs import LoraMethod
from tests.unit.training.interrupted import comparable
from tests.unit.training.tiny import colour_rows, run_training, tiny_llama
from worker.training.loop import TrainingOutcome
from worker.training.turns import Turns

IDS = torch.arange(30).reshape(2, 15) + 5
WAIT_SECONDS = 60

SETTINGS: dict[str, dict[str, Any]] = {
    "accumulating": {
        "method": LoraMethod(dropout=0.2),
        "validation_rows": colour_rows()[:3],
        "gradient_accumulation_steps": 3,
        "max_steps": 4,
        "batch_size": 2,
        "eval_steps": 2,
        "seed": 1,
    },
    "step by step": {
        "method": LoraMethod(r=4, dropout=0.1, target_modules=("q_proj", "up_proj")),
        "lr_scheduler_type": "cosine",
        "max_steps": 9,
        "seed": 2,
    },
}
"""One whose micro steps are mostly no optimizer steps, and one whose all are: what the first keeps for itself would
show in the second, and the other way round."""


def adapter_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@contextmanager
def served(resident: PreTrainedModel, turns: Turns, logits: list[torch.Tensor]) -> Iterator[None]:
    """A thread that runs the resident in a serving turn, again and again."""
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with turns.serving(), torch.no_grad():
                torch.rand(5)  # as sampling does, from the generator that dropout draws from
                logits.append(resident(input_ids=IDS).logits)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()


def test_two_trainings_on_one_resident_equal_each_alone_while_it_serves(tmp_path: Path) -> None:
    """Adapters, losses, history and what is served: nothing tells that there were others, but the events' order."""
    resident, turns = tiny_llama(), Turns(quantum_seconds=0.0)
    alone = {
        name: run_training(resident, tmp_path / "alone" / name, **settings) for name, settings in SETTINGS.items()
    }
    with torch.no_grad():
        expected = resident(input_ids=IDS).logits
    order: list[str] = []

    def train(name: str) -> TrainingOutcome:
        def note(event: dict[str, Any]) -> None:
            order.append(name)

        return run_training(resident, tmp_path / "beside" / name, turns=turns, on_event=note, **SETTINGS[name])

    logits: list[torch.Tensor] = []
    with served(resident, turns, logits), ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(train, name) for name in SETTINGS}
        beside = {name: future.result(WAIT_SECONDS) for name, future in futures.items()}
    for name in SETTINGS:
        assert adapter_bytes(tmp_path / "alone" / name) == adapter_bytes(tmp_path / "beside" / name), name
        assert comparable(alone[name]) == comparable(beside[name]), name
    first, last = (
        {name: order.index(name) for name in SETTINGS},
        {name: len(order) - order[::-1].index(name) for name in SETTINGS},
    )
    assert max(first.values()) < min(last.values()), "they did not overlap"
    assert logits
    assert all(torch.equal(one, expected) for one in logits)


def test_a_training_that_fails_leaves_the_other_alone(tmp_path: Path) -> None:
    """One is cancelled in its accumulation; the other comes to its own end, and the next one may begin."""
    resident, turns = tiny_llama(), Turns(quantum_seconds=0.0)
    alone = run_training(resident, tmp_path / "alone", **SETTINGS["step by step"])
    begun, calls = threading.Event(), 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise Cancelled

    def fail() -> None:
        begun.wait(WAIT_SECONDS)
        run_training(resident, tmp_path / "failed", turns=turns, check=check, **SETTINGS["accumulating"])

    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(fail)
        beside = run_training(
            resident,
            tmp_path / "beside",
            turns=turns,
            on_event=lambda _event: begun.set(),
            **SETTINGS["step by step"],
        )
        assert isinstance(failing.exception(WAIT_SECONDS), Cancelled)
    assert comparable(beside) == comparable(alone)
    assert adapter_bytes(tmp_path / "beside") == adapter_bytes(tmp_path / "alone")
    assert not (tmp_path / "failed").exists()
