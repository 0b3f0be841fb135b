"""Finds stop strings in text that arrives in pieces, and holds back what may still become part of one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Decided:
    """What one more piece of text decided."""

    text: str
    """Text that is certainly not part of a stop string."""
    stopped: bool
    """A stop string is complete; it and all after it are dropped."""


class StopStrings:
    """Cuts a text before the first stop string to become complete, wherever the pieces' borders lie."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, piece: str) -> Decided:
        """Add a piece. After `stopped` nothing more may be pushed."""
        self._held += piece
        start = self._first_complete()
        if start is not None:
            text, self._held = self._held[:start], ""
            return Decided(text, stopped=True)
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return Decided(text, stopped=False)

    def flush(self) -> str:
        """The text still held back, now that no more comes."""
        text, self._held = self._held, ""
        return text

    def _first_complete(self) -> int | None:
        """The start of the stop string that ends first (the longest of several that end there)."""
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        return min(found)[1] if found else None


def _overlap(text: str, stop: str) -> int:
    """Characters in the longest end of `text` that is a beginning, and not the whole, of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
