"""Training's own random numbers, on generators that the whole process shares."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from worker.training.claim import Share
from worker.training.low_priority import LowPriorityThread
from worker.training.turns import Turns

T = TypeVar("T")

ACTIVE_SECONDS = 1.0
"""Serving that has rested for longer is over for now. Short beside a pause in which somebody reads an answer."""


class SeededTurns:
    """Training's side of `Turns`, with a random state that comes and goes with the turn.

    Dropout and the adapter's initial weights draw from torch's default generators, and so may serving. Each side
    keeps its own state: training's is put in when its turn begins and taken out when it ends, so the same seed
    trains the same adapter whatever is served meanwhile, and a training's seed never repeats in what is sampled.
    """

    def __init__(self, turns: Turns, *, seed: int, device: torch.device) -> None:
        self._turns = turns
        self.share = Share()
        """What this training has had of the device."""
        self._low_priority = LowPriorityThread()
        self._cuda_device = device if device.type == "cuda" else None
        self._absent_state = [torch.Generator().manual_seed(seed).get_state()]
        """The states of the side that is not on the device: the CPU generator's, then the CUDA device's if any."""
        if self._cuda_device is not None:
            self._absent_state.append(torch.Generator(self._cuda_device).manual_seed(seed).get_state())

    @contextmanager
    def training(self) -> Iterator[None]:
        """`Turns.training`, with training's random state."""
        with self._turns.training(self.share):
            self._exchange_states()
            try:
                yield
            finally:
                self._exchange_states()

    def run(self, work: Callable[[], T]) -> T:
        """Do the long part of a turn, where the device divides itself beside serving: what is served meanwhile draws
        nothing from the default generators. While something is served it is done at a lower priority, in another
        thread; when nothing is, other programs of the machine need not go first."""
        if not self._turns.knows_beside:
            return work()

        def beside() -> T:
            with self._turns.beside():
                return work()

        if self._turns.idle_seconds >= ACTIVE_SECONDS:
            return beside()
        return self._low_priority.run(beside, nice=self._turns.nice)

    def close(self) -> None:
        """End the thread of what was done beside serving."""
        self._low_priority.close()

    def give_way(self) -> None:
        """`Turns.give_way`; the states are exchanged only when it hands over (about 20 µs each time)."""
        if not self._turns.is_due():
            return
        self._exchange_states()
        try:
            self._turns.give_way()
        finally:
            self._exchange_states()

    @property
    def quantum_seconds(self) -> float:
        """How long a turn lasts at present while serving waits."""
        return self._turns.quantum_seconds

    @property
    def pieces_are_too_long(self) -> bool:
        """Whether the pieces of this training are too long for what serving may feel."""
        return self._turns.pieces_are_too_long

    @property
    def idle_seconds(self) -> float:
        """For how long nothing has been served."""
        return self._turns.idle_seconds

    def pieces_changed(self) -> None:
        """The pieces of this training are of another length from now on."""
        self._turns.pieces_changed()

    def random_states(self) -> tuple[torch.Tensor, ...]:
        """Training's states between two turns: the CPU generator's, then the CUDA device's if it trains there."""
        return tuple(self._absent_state)

    def restore(self, states: Sequence[torch.Tensor]) -> None:
        """Go on from what `random_states` gave, between two turns.

        A state that is not there (a training goes on on another kind of device) stays as it was seeded.
        """
        self._absent_state = [
            *(state.cpu() for state in states[: len(self._absent_state)]),
            *self._absent_state[len(states) :],
        ]

    def _exchange_states(self) -> None:
        present = [torch.get_rng_state()]
        torch.set_rng_state(self._absent_state[0])
        if self._cuda_device is not None:
            present.append(torch.cuda.get_rng_state(self._cuda_device))
            torch.cuda.set_rng_state(self._absent_state[1], self._cuda_device)
        self._absent_state = present


@contextmanager
def python_and_numpy_states_kept() -> Iterator[None]:
    """Undo what happens inside to the `random` module's and numpy's global generators.

    transformers' Trainer seeds them when it is built. It draws nothing from them, but the rest of the process may:
    two trainings with one seed would make "random" numbers elsewhere repeat.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
