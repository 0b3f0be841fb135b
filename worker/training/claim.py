"""Who wishes for the device, or holds it. Plain Python, no torch."""

from dataclasses import dataclass, field
from typing import Literal

Side = Literal["serving", "training"]


@dataclass(eq=False, slots=True)
class Share:
    """What one training has had of the device."""

    held_seconds: float = 0.0
    """Of all its turns that are over."""
    finish: float = 0.0
    """Its place in the order of trainings, on their common clock (see `Turns`)."""


@dataclass(eq=False, slots=True)
class Claim:
    """One thread's wish for the device, and then its hold on it."""

    side: Side
    thread: int
    """`threading.get_ident()` of the thread that asked."""
    beside: bool = False
    """Whether the other side may compute at the same time, if it says so too."""
    met: bool = False
    """Of serving: whether training computed beside it."""
    counted_at: float = 0.0
    counted: float = 0.0
    """Of training beside serving: the time, and its processor time until then, when both were last looked at."""
    share: Share = field(default_factory=Share)
    """Of the training."""
    start: float = 0.0
    """Where it comes among trainings that wait."""
    asked: float = 0.0
    """When it came to the queue, on the clock of `Turns`, in seconds."""
    trained_before: float = 0.0
    """Seconds of training until then, since these turns began."""
    delayed: float = 0.0
    """Seconds of training between its question and its grant."""
    since: float = 0.0
    """When it was granted; later by what training beside serving has not had of the processor since."""


def are_beside(one: Claim, other: Claim) -> bool:
    return one.beside and other.beside
