"""What a run is made of: actions with weights. One random number decides on a step, so runs are dense and quick.

Hypothesis' own way to draw rules switches many of them off in each run; of 50 steps too few were then to the point:
a lost nudge was not noticed in 300 runs. Its stateful tests still drive, repeat and shorten the runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

MARK = "__action__"


@dataclass(frozen=True, slots=True)
class Action:
    weight: int
    """How often it is drawn, against the others that are possible."""
    when: Callable[[Any], Any] | None
    """Whether it is possible, asked of the machine."""
    choices: dict[str, Sequence[Any]]
    """Argument -> its possible values, all equally probable."""


def action(
    weight: int, when: Callable[[Any], Any] | None = None, **choices: Sequence[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a method of a machine one of its actions."""

    def mark(method: Callable[..., None]) -> Callable[..., None]:
        setattr(method, MARK, Action(weight, when, choices))
        return method

    return mark


def actions_of(machine: type) -> dict[str, Action]:
    """By the names of the methods."""
    marked = ((name, getattr(getattr(machine, name), MARK, None)) for name in sorted(dir(machine)))
    return {name: found for name, found in marked if found is not None}


def draw(machine: object, actions: dict[str, Action], chance: Random) -> tuple[str, dict[str, Any]]:
    """The name of an action that is possible now, and its arguments."""
    possible = {name: one for name, one in actions.items() if one.when is None or one.when(machine)}
    (name,) = chance.choices(list(possible), [one.weight for one in possible.values()])
    return name, {argument: chance.choice(values) for argument, values in possible[name].choices.items()}
