"""Room for trainings side by side: who fits, who waits, and how a wait ends."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from tandem.errors import Cancelled
from tests.unit.training.tiny import tiny_llama
from worker.training.room import TrainingRoom, activation_bytes, adapter_bytes

WAIT_SECONDS = 20


def nothing() -> None:
    """Nobody asks to stop, and nobody is told of a wait."""


def refuse() -> None:
    raise AssertionError("there was room")


def test_trainings_that_fit_together_do_not_wait() -> None:
    room = TrainingRoom(10)
    with room.hold(6, nothing, refuse), room.hold(4, nothing, refuse):
        pass


def test_a_training_alone_always_fits() -> None:
    """Its need is an estimate: refusing it for good could be wrong."""
    with TrainingRoom(10).hold(1_000, nothing, refuse):
        pass


def test_one_that_does_not_fit_waits_for_another_to_end() -> None:
    """It is told that it waits, and begins when the first one has ended."""
    room, waits, began = TrainingRoom(10), threading.Event(), threading.Event()

    def second() -> None:
        with room.hold(5, nothing, waits.set):
            began.set()

    with ThreadPoolExecutor(1) as pool:
        with room.hold(6, nothing, refuse):
            future = pool.submit(second)
            assert waits.wait(WAIT_SECONDS)
            assert not began.is_set()
        future.result(WAIT_SECONDS)
    assert began.is_set()


def test_a_cancelled_wait_leaves_the_room_as_it_was() -> None:
    room = TrainingRoom(10)

    def cancelled() -> None:
        raise Cancelled

    with room.hold(6, nothing, refuse):
        with pytest.raises(Cancelled), room.hold(5, cancelled, nothing):
            raise AssertionError("there was no room")
        with room.hold(4, nothing, refuse):
            pass


def test_an_error_gives_the_room_back() -> None:
    room = TrainingRoom(10)
    with pytest.raises(ZeroDivisionError), room.hold(10, nothing, refuse):
        raise ZeroDivisionError
    with room.hold(10, nothing, refuse):
        pass


def test_the_estimate_is_above_what_was_measured() -> None:
    """SmolLM2, four rows of 128 tokens, LoRA on all linear layers with dropout: 874 MB in bfloat16."""
    estimate = activation_bytes(tokens=512, layers=30, hidden=576, intermediate=1536, value_bytes=2)
    assert 874e6 <= estimate <= 1.1 * 874e6


def test_an_adapter_takes_what_torch_allocates_for_it() -> None:
    """Its parameters, their gradients, and what the optimizer keeps after a step, but for its count of steps."""
    model = inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), tiny_llama())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.arange(8).reshape(1, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    kept = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.dim()]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    allocated = sum(tensor.nbytes for tensor in (*trained, *gradients, *kept))
    assert adapter_bytes(sum(parameter.nbytes for parameter in trained), accumulates=False) == allocated
