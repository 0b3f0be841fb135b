"""Training's random numbers: its own, while the process shares one generator."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from tests.unit.training.test_turns import JOIN_SECONDS, wait_for_queue
from worker.training.randomness import SeededTurns, python_and_numpy_states_kept
from worker.training.turns import Turns

CPU = torch.device("cpu")


def test_what_is_served_between_does_not_change_training() -> None:
    """Training draws the same numbers whether serving draws some in between or not."""
    alone = torch.Generator().manual_seed(7)
    expected = [torch.rand(3, generator=alone) for _ in range(3)]

    turns = Turns(0.0)
    seeded = SeededTurns(turns, seed=7, device=CPU)

    def serve() -> None:
        with turns.serving():
            torch.rand(100)

    drawn = []
    with ThreadPoolExecutor(1) as pool:
        with seeded.training():
            drawn.append(torch.rand(3))
            future = pool.submit(serve)
            wait_for_queue(turns, 1)
            seeded.give_way()
            future.result(JOIN_SECONDS)
            drawn.append(torch.rand(3))
        torch.rand(5)
        with seeded.training():
            drawn.append(torch.rand(3))
    for got, want in zip(drawn, expected, strict=True):
        assert torch.equal(got, want)


def test_training_does_not_change_what_is_served() -> None:
    """Serving's numbers go on where they were, as if nothing had been trained."""
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = torch.rand(2)
    with SeededTurns(Turns(0.0), seed=7, device=CPU).training():
        torch.manual_seed(99)
        torch.rand(50)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)


def test_another_process_draws_what_would_have_come_next() -> None:
    """The states between two turns are all there is, and putting them back touches nobody else's."""
    first = SeededTurns(Turns(0.0), seed=7, device=CPU)
    with first.training():
        torch.rand(3)
    states = first.random_states()
    with first.training():
        expected = torch.rand(3)

    torch.manual_seed(5)
    served = torch.rand(2)
    torch.manual_seed(5)
    second = SeededTurns(Turns(0.0), seed=99, device=CPU)
    second.restore(states)
    with second.training():
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(2), served)


def test_a_state_of_another_kind_of_device_is_left_out() -> None:
    """A checkpoint from a GPU has two states; on a CPU the first is taken."""
    states = SeededTurns(Turns(0.0), seed=7, device=CPU).random_states()
    other = SeededTurns(Turns(0.0), seed=99, device=CPU)
    other.restore([*states, torch.zeros(16, dtype=torch.uint8)])
    assert len(other.random_states()) == 1
    assert torch.equal(other.random_states()[0], states[0])


def test_python_and_numpy_go_on_after_a_seed() -> None:
    """Trainer seeds every generator it knows; the rest of the process must not repeat itself."""
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    with python_and_numpy_states_kept():
        random.seed(5)
        np.random.seed(5)
        random.random()
    assert (random.random(), np.random.random()) == expected
