"""The dial between serving and training, by a simulated device: no threads, no model, time that is counted."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.training.pace import MEMORY, FixedQuantum, LatencyTarget, TurnController

STEPS = 600
SETTLED = 200
"""Serving turns after which the controller has seen enough: three of its windows."""


@dataclass
class Device:
    """Serving that always has a next step, and training that always has a next piece of work."""

    controller: TurnController | FixedQuantum
    step: Callable[[], float]
    """Draws the seconds of a serving turn."""
    piece: Callable[[], float]
    """Draws the seconds between two boundaries of training."""
    gaps: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    served: float = 0.0
    trained: float = 0.0
    longest_quantum: float = 0.0
    cold: float = 1.0
    """By how much a turn of serving takes longer when training was before it."""

    def run(self, steps: int = STEPS) -> "Device":
        for _ in range(steps):
            self.longest_quantum = max(self.longest_quantum, self.controller.quantum_seconds)
            wait = self._train() if self.controller.may_train() else 0.0
            held = self.step() * (self.cold if wait else 1.0)
            self.controller.served(held, wait)
            self.gaps.append(wait + held)
            self.waits.append(wait)
            self.served += held
            self.trained += wait
        return self

    def _train(self) -> float:
        taken = self.piece()
        while taken < self.controller.quantum_seconds:
            taken += self.piece()
        self.controller.trained(taken)
        return taken


def percentile(values: list[float], share: float = 0.95) -> float:
    return sorted(values)[int(share * len(values))]


def drawn(seed: str, low: float, high: float) -> Callable[[], float]:
    chance = random.Random(seed)
    return lambda: chance.uniform(low, high)


@given(
    seed=st.integers(0, 1000),
    step=st.floats(0.005, 0.2),
    spread=st.floats(0.0, 0.3),
    piece=st.floats(0.01, 0.25),
    slowdown=st.floats(1.4, 3.0),
)
@settings(max_examples=60, deadline=None)
def test_the_target_is_kept_and_used(seed: int, step: float, spread: float, piece: float, slowdown: float) -> None:
    """While pieces of training are short beside the target, the 95th percentile of the gaps lies at it: not above,
    but for what a percentile of a few turns is off, and not far below, which would be training's loss."""
    device = Device(
        TurnController(LatencyTarget(slowdown)),
        drawn(f"steps {seed}", step, step * (1 + spread)),
        drawn(f"pieces {seed}", piece * step / 2, piece * step),
    )
    device.run(SETTLED)
    device.gaps.clear()
    device.run(STEPS)
    alone = percentile([gap - wait for gap, wait in zip(device.gaps, device.waits[SETTLED:], strict=True)])
    assert percentile(device.gaps) <= 1.05 * slowdown * alone
    assert percentile(device.gaps) >= 0.9 * slowdown * alone


@given(
    seed=st.integers(0, 1000),
    step=st.floats(0.001, 1.0),
    pieces=st.floats(0.02, 5.0),
    slowdown=st.floats(1.01, 5.0),
    gap=st.floats(0.001, 2.0),
    least=st.floats(0.01, 0.6),
)
@settings(max_examples=60, deadline=None)
def test_neither_side_starves(
    seed: int, step: float, pieces: float, slowdown: float, gap: float, least: float
) -> None:
    """Whatever the target and the lengths: training has its least share of the time that both want, and serving
    never waits longer than a quantum and one piece."""
    piece = pieces * step
    device = Device(
        TurnController(LatencyTarget(slowdown, gap, least)),
        drawn(f"steps {seed}", step / 2, step),
        drawn(f"pieces {seed}", piece / 2, piece),
    ).run()
    # But for one piece, and for the first turns, when nothing is known and it gives way at every boundary.
    assert device.trained >= 0.9 * least / (1 - least) * device.served - piece
    assert max(device.waits) <= device.longest_quantum + piece + 1e-9


@given(seed=st.integers(0, 1000), step=st.floats(0.01, 0.1), gap=st.floats(0.12, 1.0))
@settings(max_examples=30, deadline=None)
def test_the_cap_holds_where_the_multiple_would_allow_more(seed: int, step: float, gap: float) -> None:
    device = Device(
        TurnController(LatencyTarget(1_000.0, gap)), drawn(str(seed), step, step * 1.05), lambda: 0.001
    ).run()
    assert percentile(device.gaps[SETTLED:]) <= gap * 1.01
    assert percentile(device.gaps[SETTLED:]) >= gap * 0.9


def test_training_whose_pieces_are_too_long_is_rationed() -> None:
    """Steps of 20 ms may take 30: pieces of 50 ms have no place between them. One comes now and then, so that
    training has a tenth of the time; all other gaps are as if nothing was trained."""
    controller = TurnController(LatencyTarget(1.5, least_share=0.1))
    device = Device(controller, lambda: 0.02, lambda: 0.05).run()
    assert controller.pieces_are_too_long
    assert device.trained / (device.trained + device.served) == pytest.approx(0.1, abs=0.02)
    between = [place for place, wait in enumerate(device.waits[SETTLED:]) if wait > 0]
    assert {later - earlier for earlier, later in pairwise(between)} <= {22, 23}, "0.05 s for each 0.45 s served"


def test_caches_that_training_has_filled_are_its_cost_as_well() -> None:
    """Steps of 20 ms take 24 after training: the gaps come to 1.5 times the 20, not the 24."""
    controller = TurnController(LatencyTarget(1.5))
    device = Device(controller, lambda: 0.02, lambda: 0.001, cold=1.2).run()
    assert percentile(device.gaps[SETTLED:]) == pytest.approx(0.03, abs=0.0015)


def test_a_ration_ends_when_the_pieces_are_short_again() -> None:
    """The next training has smaller micro-batches: it gets what the target leaves, not the ration."""
    controller = TurnController(LatencyTarget(1.5))
    device = Device(controller, lambda: 0.02, lambda: 0.05).run()
    rationed = controller.pieces_are_too_long
    device.piece = lambda: 0.001
    device.run(2 * MEMORY)
    assert (rationed, controller.pieces_are_too_long) == (True, False)
    assert controller.quantum_seconds == pytest.approx(0.009, abs=0.002)


def test_shorter_pieces_are_judged_by_themselves() -> None:
    """A training that has halved its micro-batch need not wait until what came before is forgotten."""
    controller = TurnController(LatencyTarget(1.5))
    device = Device(controller, lambda: 0.02, lambda: 0.05).run()
    device.piece = lambda: 0.001
    controller.pieces_changed()
    device.run(SETTLED)
    assert not controller.pieces_are_too_long
    assert controller.quantum_seconds == pytest.approx(0.009, abs=0.002)


def test_short_pieces_do_not_help_where_serving_alone_misses_the_cap() -> None:
    """Steps of 20 ms under a cap of 10: training is rationed, but not because of its pieces."""
    controller = TurnController(LatencyTarget(1.5, gap_seconds=0.01))
    device = Device(controller, lambda: 0.02, lambda: 0.05).run()
    assert device.trained / (device.trained + device.served) == pytest.approx(0.1, abs=0.02)
    assert not controller.pieces_are_too_long


def test_a_new_load_is_judged_by_itself() -> None:
    """When 20 ms steps become 200 ms steps the quantum grows with them, and shrinks again."""
    controller = TurnController(LatencyTarget(1.5))
    device = Device(controller, lambda: 0.02, lambda: 0.001).run()
    assert controller.quantum_seconds == pytest.approx(0.009, abs=0.002)
    device.step = lambda: 0.2
    device.run(SETTLED)
    assert controller.quantum_seconds == pytest.approx(0.099, abs=0.004)
    device.step = lambda: 0.02
    device.run(SETTLED)
    assert controller.quantum_seconds == pytest.approx(0.009, abs=0.002)


def test_a_training_that_begins_gives_way_at_every_boundary() -> None:
    """Nothing is known of its pieces yet, nor what is left to know when nobody has trained for long."""
    controller = TurnController(LatencyTarget(1.5))
    assert controller.quantum_seconds == 0.0
    Device(controller, lambda: 0.02, lambda: 0.001).run(SETTLED)
    assert controller.quantum_seconds > 0.0
    for _ in range(2 * MEMORY):
        controller.served(0.02, 0.0)
    assert controller.quantum_seconds == 0.0
    assert controller.may_train()


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ({"slowdown": 1.0}, "slowdown"),
        ({"slowdown": float("nan")}, "slowdown"),
        ({"slowdown": 1.5, "gap_seconds": 0.0}, "gap_seconds"),
        ({"slowdown": 1.5, "least_share": 0.0}, "least_share"),
        ({"slowdown": 1.5, "least_share": 1.0}, "least_share"),
    ],
)
def test_an_impossible_target_is_refused(target: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LatencyTarget(**target)


@pytest.mark.parametrize("quantum", [-0.001, float("nan"), float("inf")])
def test_a_quantum_is_a_length_of_time(quantum: float) -> None:
    with pytest.raises(ValueError, match="quantum_seconds"):
        FixedQuantum(quantum)
