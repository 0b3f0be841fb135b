"""Sides of a comparison that take turns: each round measures all of them, in another order, and medians count."""

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SEED = 1


@dataclass(frozen=True, slots=True)
class Work:
    """What one side did in one round."""

    tokens: int
    seconds: float


Side = Callable[[int], Work | None]
"""Does a side's work of one round, whose number it is given; None if it sits this one out."""


def take_turns(sides: Mapping[str, Side], rounds: int) -> dict[str, list[Work]]:
    """The work of each side in every round."""
    done: dict[str, list[Work]] = {name: [] for name in sides}
    chance = random.Random(SEED)
    for number in range(rounds):
        for name in chance.sample(list(sides), len(sides)):
            work = sides[name](number)
            if work is None:
                continue
            done[name].append(work)
            print(f"  round {number + 1}, {name}: {work.tokens} tokens in {work.seconds:.1f} s", flush=True)
    return done


def median_rate(works: list[Work]) -> float:
    """Tokens a second in the middle one of the rounds: where each of them did the whole work."""
    return statistics.median(work.tokens / work.seconds for work in works)


def total_rate(works: list[Work]) -> float:
    """Tokens a second over all rounds: where each of them did another part of the work."""
    return sum(work.tokens for work in works) / sum(work.seconds for work in works)


def percentile(values: list[float], share: float) -> float:
    """The value below which so large a share of `values` lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
