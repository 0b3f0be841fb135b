"""The dial where both sides compute at once, by a simulated device: no threads, no model, time that is counted."""

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.test_pace import percentile
from worker.training.beside_pace import APART_FOR, FEWEST_PROBES, JUDGED_OVER, BesidePace
from worker.training.pace import PROBE_EVERY, LatencyTarget

STEPS = 1500
SETTLED = 1000
"""Serving turns after which all probes have been made, and the quantum has come to where it stays."""


@dataclass
class Device:
    """Serving that always has a next step, and training that computes beside it."""

    pace: BesidePace
    step: float
    """Seconds of the shortest serving turn by itself; the longest takes half as long again."""
    beside: float
    """By how much a turn beside training takes longer."""
    leftover: float = 0.3
    """What training has of the processor beside a turn."""
    cold: float = 0.5
    """By how much of a quantum the turn after it takes longer, at most by as much again as a turn beside training."""
    gaps: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    """What the same turns would have taken without training."""
    trained: float = 0.0
    apart: int = 0

    def run(self, seed: int, steps: int = STEPS) -> "Device":
        chance = random.Random(seed)
        for _ in range(steps):
            alone = self.step * chance.uniform(1.0, 1.5)
            self.alone.append(alone)
            if self.pace.beside:
                quantum = self.pace.beside_quantum_seconds
                held = alone * self.beside + min(self.cold * quantum, alone * (self.beside - 1))
                self.pace.served_beside(held, quantum + self.leftover * held)
                self.gaps.append(quantum + held)
                self.trained += quantum + self.leftover * held
            else:
                self.pace.served(alone, 0.0)
                self.gaps.append(alone)
                self.apart += 1
        return self

    def slowdown(self) -> float:
        """Of the 95th percentile, once all has settled."""
        return percentile(self.gaps[SETTLED:]) / percentile(self.alone[SETTLED:])


@given(
    seed=st.integers(0, 1000),
    step=st.floats(0.005, 0.2),
    beside=st.floats(1.0, 1.2),
    dial=st.floats(1.5, 3.0),
    cold=st.floats(0.0, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_the_target_is_kept_and_used(seed: int, step: float, beside: float, dial: float, cold: float) -> None:
    """The 95th percentile of the gaps lies at the target, but for what a percentile of some turns is off."""
    device = Device(BesidePace(LatencyTarget(dial)), step, beside, cold=cold).run(seed)
    assert 0.85 * dial <= device.slowdown() <= 1.1 * dial


def test_a_strict_target_leaves_training_what_serving_leaves() -> None:
    """Beside serving it costs nearly what is allowed: it gets no time for itself, and goes on all the same."""
    device = Device(BesidePace(LatencyTarget(1.1)), 0.04, 1.1).run(1)
    assert device.pace.beside_quantum_seconds < 0.002
    assert device.slowdown() < 1.2
    assert device.trained > 0.25 * sum(device.gaps)


@given(seed=st.integers(0, 1000), leftover=st.floats(0.0, 0.3), least=st.floats(0.05, 0.5))
@settings(max_examples=40, deadline=None)
def test_training_has_its_least_share(seed: int, leftover: float, least: float) -> None:
    """Where serving leaves less of the processors than that, the quantum fills it up, whatever the target."""
    device = Device(BesidePace(LatencyTarget(1.01, least_share=least)), 0.04, 1.0, leftover=leftover).run(seed, 600)
    assert device.trained >= 0.85 * least * sum(device.gaps)


def test_the_cap_holds_where_the_multiple_would_allow_more() -> None:
    """The absolute time between two tokens."""
    device = Device(BesidePace(LatencyTarget(1000.0, 0.1)), 0.02, 1.1).run(3)
    assert percentile(device.gaps[SETTLED:]) <= 0.11


def test_nothing_is_taken_before_anything_is_known() -> None:
    """Until some turns have been served alone, training has no more than its least share."""
    pace = BesidePace(LatencyTarget(3.0, least_share=0.1))
    Device(pace, 0.04, 1.1).run(1, PROBE_EVERY * FEWEST_PROBES - 1)
    assert pace.beside_quantum_seconds == 0.0
    Device(pace, 0.04, 1.1).run(1, 100)
    assert pace.beside_quantum_seconds > 0.01


def test_sides_that_do_not_bear_each_other_take_turns_for_a_while() -> None:
    """Turns that take twice as long beside training break any target below: nobody computes beside serving then,
    until it is tried again, so seldom that a 95th percentile does not see it."""
    device = Device(BesidePace(LatencyTarget(1.3)), 0.04, 2.0).run(1, 3 * JUDGED_OVER + APART_FOR // 2)
    assert not device.pace.beside
    assert device.pace.beside_quantum_seconds == 0.0
    before = device.apart
    device.run(2, APART_FOR * 4)
    assert APART_FOR * 4 > device.apart - before > 0.95 * APART_FOR * 4
    assert percentile(device.gaps[-APART_FOR * 4 :]) < 1.5 * device.step


def test_micro_batches_are_not_cut_where_nobody_waits_for_their_pieces() -> None:
    """Serving beside training waits for no boundary, so shorter pieces would be no help to it."""
    pace = BesidePace(LatencyTarget(1.2))
    for _ in range(JUDGED_OVER):
        pace.trained(0.5)
        pace.served(0.01, 0.5)
    assert not pace.pieces_are_too_long
