"""How long training may hold the device while serving waits. Plain Python: it decides from times alone."""

import itertools
import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Protocol

WINDOW = 64
"""Serving turns that the figures are taken over: a few seconds of decoding, and enough for a 95th percentile."""
MEMORY = 512
"""Serving turns after which an observation is forgotten, even if few have come since: what is served may be another
load by now. Enough for a training that is rationed to one piece of work in twenty turns to be judged by some."""
UPDATE_EVERY = 8
"""Serving turns between two decisions, so that sorting a window costs nothing beside them."""
MOST_OF_THE_MIDDLE = 2.0
"""No quantum is longer than so many times what the multiple allows for the middle one of serving's turns. Where one
turn in ten reads a long prompt, a percentile of such turns would allow more than the others can bear."""
PROBE_EVERY = 48
"""Serving turns of which the last two have no training before them: the first finds the caches as training has left
them, the second as serving has. It costs training a 24th of its turns."""
PROBES = 5
"""Of which the median counts: some outliers among so few do no harm, and a new load is known after seconds."""
PERCENTILE = 0.95
"""Of the gaps between tokens that keep the target."""


class Pace(Protocol):
    """What `Turns` asks and tells. It is called under the lock of `Turns`, and must return at once."""

    @property
    def quantum_seconds(self) -> float:
        """How long a training turn lasts while serving waits."""

    @property
    def pieces_are_too_long(self) -> bool:
        """Whether the target would be kept if the pieces between the boundaries of training were short enough."""

    @property
    def knows_beside(self) -> bool:
        """Whether both sides may ever compute at once."""

    @property
    def beside(self) -> bool:
        """Whether training may compute beside the next turn of serving."""

    @property
    def beside_quantum_seconds(self) -> float:
        """How long training beside serving has the device for itself between two turns of serving."""

    @property
    def nice(self) -> int:
        """The nice value at which training computes beside serving: 0 to 19, and 20 for less than any."""

    def may_train(self) -> bool:
        """Whether training may have its next turn although serving works on."""

    def trained(self, contended_seconds: float) -> None:
        """A training turn is over; for so long serving waited for it."""

    def served(self, held_seconds: float, delayed_seconds: float) -> None:
        """A serving turn is over; it was preceded by so long a wait for training."""

    def served_beside(self, held_seconds: float, gained_seconds: float) -> None:
        """A serving turn is over beside which training computed. Since the end of the turn before it, training has
        had a processor for so long."""

    def pieces_changed(self) -> None:
        """The pieces of training are of another length from now on."""


class OneAtATime:
    """Half of a Pace, for those by which serving and training never compute at once."""

    knows_beside = False
    beside = False
    beside_quantum_seconds = 0.0
    nice = 0

    def served_beside(self, held_seconds: float, gained_seconds: float) -> None:
        """Never called."""
        raise RuntimeError(f"training computed for {gained_seconds} s beside {held_seconds} s of serving")


class FixedQuantum(OneAtATime):
    """The same quantum whatever serving feels."""

    def __init__(self, quantum_seconds: float) -> None:
        """Raises ValueError when it is negative or not finite."""
        if not (math.isfinite(quantum_seconds) and quantum_seconds >= 0):
            raise ValueError(f"quantum_seconds must be finite and at least 0, not {quantum_seconds}")
        self.quantum_seconds = quantum_seconds
        self.pieces_are_too_long = False

    def may_train(self) -> bool:
        return True

    def trained(self, contended_seconds: float) -> None:
        """Changes nothing."""

    def served(self, held_seconds: float, delayed_seconds: float) -> None:
        """Changes nothing."""

    def pieces_changed(self) -> None:
        """Changes nothing."""


@dataclass(frozen=True, slots=True)
class LatencyTarget:
    """What training may cost those who are served."""

    slowdown: float
    """The 95th percentile of the time between two tokens, as a multiple of what it is without training; above 1."""
    gap_seconds: float = math.inf
    """A time that this percentile does not pass either, however slow serving is by itself."""
    least_share: float = 0.1
    """What training gets of the time that both want the device, even where the target cannot be kept; above 0 and
    below 1. As long as all training is between serving's turns, this multiplies the mean gap by 1 / (1 - share)."""

    def __post_init__(self) -> None:
        if not self.slowdown > 1:
            raise ValueError(f"slowdown must be above 1, not {self.slowdown}")
        if not self.gap_seconds > 0:
            raise ValueError(f"gap_seconds must be above 0, not {self.gap_seconds}")
        if not 0 < self.least_share < 1:
            raise ValueError(f"least_share must lie between 0 and 1, not {self.least_share}")


@dataclass(frozen=True, slots=True)
class _AfterTraining:
    """A serving turn that had training before it."""

    number: int
    held: float
    overshoot: float
    """By how much the wait for training was longer than the quantum: the work up to the boundary, and waking up."""


class TurnController(OneAtATime):
    """Finds the longest quantum with which the gaps between serving's tokens keep a target.

    A gap is a wait for training and a serving turn. Training's part of it is the quantum and an overshoot, since
    training stops only at the boundaries of its work. Turns and overshoots are observed; what the target leaves
    beside their 95th percentile is the quantum.

    If it leaves nothing, since already the work between two boundaries is too long, training is **rationed**: it gets
    one piece of work now and then, as much as its least share comes to. In any case, while both want the device,
    training gets `least_share` of it in the long run, and serving waits no longer than the quantum and one piece.

    Serving's turns themselves are slower when training has used the caches between them. So now and then training
    sits out two turns, and the second of them tells what serving would take by itself.
    """

    def __init__(self, target: LatencyTarget) -> None:
        self._target = target
        self._held: deque[float] = deque(maxlen=WINDOW)
        self._after_training: deque[_AfterTraining] = deque(maxlen=WINDOW)
        self._undisturbed: deque[float] = deque(maxlen=PROBES)
        """What a turn took that no training had preceded, as a part of those around it."""
        self._quantum = 0.0  # at first a training gives way at every boundary
        self._rationed = False
        self._pieces_are_too_long = False
        self._credit = 0.0
        """Seconds of training that a rationed training has saved up; negative where it has taken more."""
        self._overshoot = 0.0
        """Of the training turn that was the last."""
        self._turns = 0
        """Serving turns so far."""

    @property
    def quantum_seconds(self) -> float:
        return max(0.0, self._credit) if self._rationed else self._quantum

    @property
    def pieces_are_too_long(self) -> bool:
        return self._pieces_are_too_long

    def may_train(self) -> bool:
        return self._credit > 0 if self._rationed else self._turns % PROBE_EVERY < PROBE_EVERY - 2

    def trained(self, contended_seconds: float) -> None:
        self._overshoot = max(0.0, contended_seconds - self.quantum_seconds)
        self._credit -= contended_seconds

    def served(self, held_seconds: float, delayed_seconds: float) -> None:
        self._turns += 1
        if self._turns % PROBE_EVERY == 0 and delayed_seconds == 0 and self._after_training:
            around = [served.held for served in self._after_training if served.number > self._turns - PROBE_EVERY]
            if around:
                self._undisturbed.append(held_seconds / statistics.median(around))
        self._held.append(held_seconds)
        if delayed_seconds > 0:
            self._after_training.append(_AfterTraining(self._turns, held_seconds, self._overshoot))
        self._credit = min(self._credit, 0.0) + self._least(held_seconds)
        if self._turns % UPDATE_EVERY == 0:
            self._decide()

    def pieces_changed(self) -> None:
        self._after_training.clear()  # what is known of the old ones says nothing of the new ones
        self._decide()

    def _decide(self) -> None:
        while self._after_training and self._after_training[0].number <= self._turns - MEMORY:
            self._after_training.popleft()
        if len(self._after_training) < UPDATE_EVERY:
            # Nobody trains, or not for long: a training begins as the first one did.
            self._quantum, self._rationed, self._pieces_are_too_long, self._credit = 0.0, False, False, 0.0
            return
        by_itself = percentile(list(self._held)) * min(1.0, statistics.median(self._undisturbed or [1.0]))
        target = min(self._target.slowdown * by_itself, self._target.gap_seconds)
        # Each of the last turns with one of the overshoots: these may be old, of another load, when they are rare.
        overshoots = [served.overshoot for served in self._after_training]
        gaps = [held + overshoot for held, overshoot in zip(self._held, itertools.cycle(overshoots), strict=False)]
        spent = percentile(gaps)
        self._rationed = spent > target
        # Where serving alone misses the target, or its outliers do it together with short pieces, shorter ones are
        # no help.
        left = target - percentile(list(self._held))
        self._pieces_are_too_long = self._rationed and 0 <= left < percentile(overshoots)
        if not self._rationed:
            self._credit = 0.0  # debts are of the ration alone
        middle, mean = statistics.median(self._held), statistics.mean(self._held)
        most = MOST_OF_THE_MIDDLE * (self._target.slowdown - 1) * middle
        self._quantum = 0.0 if self._rationed else max(min(target - spent, most), self._least(mean))

    def _least(self, served_seconds: float) -> float:
        """Training that makes up the least share beside so much serving."""
        return served_seconds * self._target.least_share / (1 - self._target.least_share)


def percentile(values: list[float]) -> float:
    """The value that PERCENTILE of the others do not pass; of a few values not the largest, maybe an accident."""
    return sorted(values)[int(PERCENTILE * (len(values) - 1))]
