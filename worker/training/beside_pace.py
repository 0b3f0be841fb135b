"""How training computes beside serving, where threads have priorities. Plain Python: it decides from times alone."""

import math
import statistics
from collections import deque

from worker.training.pace import (
    MOST_OF_THE_MIDDLE,
    PROBE_EVERY,
    UPDATE_EVERY,
    LatencyTarget,
    TurnController,
    percentile,
)

JUDGED_OVER = 256
"""Serving turns beside training, some ten seconds of decoding, after which it may be said that this costs too much:
chance alone moves the 95th percentile of a shorter window by more than the strictest targets allow."""
PROBES = 16
"""What is known of serving by itself: half a minute of decoding."""
FEWEST_PROBES = 4
"""Before, nothing is known, and training has what serving leaves, and its least share."""
WINDOW = 128
"""Serving turns beside training that a quantum is found from: some five seconds of decoding."""
DAMPING = 0.25
"""The part of a change that each decision makes. A quantum makes the turns after it longer, as training has used the
caches, by up to twice its own length on the machines we saw: a change made at once would swing."""
COST_BESIDE = 1.1
"""What serving's turns take longer beside training at the lowest priority: caches and memory have none."""
NICE_STEP = 1.25
"""Linux's scheduler divides a thread's weight by so much for each nice value (sched(7))."""
LOWEST = 20
"""One beyond the last nice value: Linux's class SCHED_IDLE (sched(7)), which runs where nothing else wants to."""
ROOM = 0.1
"""A quantum that is a larger part of a turn is room for a higher priority, which uses it better."""
TOO_MUCH = 1.25
"""Times the target. Below, chance may be the reason; and taking turns is no way to a stricter target: for training's
least share serving waits for whole pieces of its work then."""
APART_FOR = 8192
"""Serving turns, some minutes, for which the two sides take turns before it is tried again. The trial is a part of
them that a 95th percentile does not see."""


class BesidePace:
    """Training computes beside serving, at a lower priority, and before each turn of serving has the processors for
    itself for a quantum: as long as the gaps between serving's tokens keep the target.

    A gap is a quantum and a serving turn, since serving waits for no boundary of training. Training makes serving's
    turns longer, so now and then it stands still during one of them, which tells what serving would take by itself.
    Two things follow the target:

    - The nice value. A thread of weight w beside one of weight 1 makes that one's work take 1 + w times as long, so
      it begins with the weight that the target names. It is raised while the turns beside training are too long, and
      lowered while a quantum shows that they leave room.
    - The quantum: what the target leaves beside the 95th percentile of the turns. It is the finer of the two and the
      dearer one, since both sides' work overlaps less. It is never shorter than what fills up training's least share.

    Where the turns are too long even at the lowest priority (it has no effect, or the memory is what both wait for),
    the sides take turns for a while, as `TurnController` says. So they do in any case where one of the two cannot be
    beside the other.
    """

    knows_beside = True

    def __init__(self, target: LatencyTarget) -> None:
        self._target = target
        self._apart = TurnController(target)
        self._held: deque[float] = deque(maxlen=JUDGED_OVER)
        self._gained: deque[float] = deque(maxlen=WINDOW)
        """What training had of a processor beside each turn, the quantum before it not counted."""
        self._undisturbed: deque[float] = deque(maxlen=PROBES)
        """What a turn took beside which nobody trained, as a multiple of the middle one of those before it."""
        self._quantum = 0.0
        self.nice = _nice_of(target.slowdown / COST_BESIDE - 1)
        self._nice_since = 0
        """The turn since which it is that."""
        self._turns = 0
        """Serving turns so far."""
        self._apart_until = 0
        """The turn after which both may be beside each other again."""

    @property
    def beside(self) -> bool:
        return not self._is_apart and not self._probes

    @property
    def beside_quantum_seconds(self) -> float:
        return self._quantum

    @property
    def quantum_seconds(self) -> float:
        return self._apart.quantum_seconds

    @property
    def pieces_are_too_long(self) -> bool:
        return self._is_apart and self._apart.pieces_are_too_long

    @property
    def _is_apart(self) -> bool:
        return self._turns < self._apart_until

    @property
    def _probes(self) -> bool:
        return self._turns % PROBE_EVERY == PROBE_EVERY - 1

    def may_train(self) -> bool:
        return self._apart.may_train() and (self._is_apart or not self._probes)

    def trained(self, contended_seconds: float) -> None:
        self._apart.trained(contended_seconds)

    def pieces_changed(self) -> None:
        self._apart.pieces_changed()

    def served(self, held_seconds: float, delayed_seconds: float) -> None:
        if self._probes and not self._is_apart and len(self._held) >= UPDATE_EVERY:
            self._undisturbed.append(held_seconds / statistics.median(self._recent()))
        self._turns += 1
        self._apart.served(held_seconds, delayed_seconds)

    def served_beside(self, held_seconds: float, gained_seconds: float) -> None:
        self._turns += 1
        self._held.append(held_seconds)
        # Before the turn it had the processors for a quantum, or for longer, if nothing was served.
        self._gained.append(min(gained_seconds - self._quantum, held_seconds))
        if len(self._held) >= UPDATE_EVERY and self._turns % UPDATE_EVERY == 0:
            self._decide()

    def _decide(self) -> None:
        recent = self._recent()
        enough = len(self._undisturbed) >= FEWEST_PROBES
        left = self._allowed(recent) - percentile(recent) if enough else 0.0
        if enough and len(self._held) == JUDGED_OVER and self._turns - self._nice_since >= JUDGED_OVER:
            is_too_much = self._is_too_much()
            if is_too_much and self.nice == LOWEST:
                self._part()
                return
            if left < 0:
                self._set_nice(LOWEST if is_too_much else self.nice + 1)
            elif self._quantum > ROOM * statistics.median(recent):
                self._set_nice(self.nice - 1)
        mean, share = statistics.mean(recent), self._target.least_share
        missing = mean * share / (1 - share) - statistics.mean(self._gained)
        most = MOST_OF_THE_MIDDLE * (self._target.slowdown - 1) * statistics.median(recent)
        self._quantum = max(self._quantum + DAMPING * (min(left, most) - self._quantum), missing, 0.0)

    def _set_nice(self, nice: int) -> None:
        self.nice = min(max(nice, 0), LOWEST)
        self._nice_since = self._turns

    def _is_too_much(self) -> bool:
        held = list(self._held)
        return percentile(held) > TOO_MUCH * self._allowed(held)

    def _allowed(self, held: list[float]) -> float:
        """The 95th percentile of the gaps, in seconds, that is allowed where turns beside training are so long."""
        by_itself = statistics.median(held) * percentile(list(self._undisturbed))
        return min(self._target.slowdown * by_itself, self._target.gap_seconds)

    def _part(self) -> None:
        """The two sides take turns from here on, and what is known of them beside each other is forgotten."""
        self._apart_until = self._turns + APART_FOR
        self._held.clear()
        self._gained.clear()
        self._undisturbed.clear()
        self._quantum = 0.0

    def _recent(self) -> list[float]:
        return list(self._held)[-WINDOW:]


def _nice_of(weight: float) -> int:
    """The nice value of a thread with such a weight beside one with nice value 0."""
    if weight <= 0:
        return LOWEST
    return min(max(round(-math.log(weight, NICE_STEP)), 0), LOWEST)
