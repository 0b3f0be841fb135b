"""Stride scheduling among the owners of one priority of one lane (Waldspurger and Weihl 1995)."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class FairShare:
    """Each owner with ready jobs has a pass; the lowest goes next, and each job that goes costs 1 / weight."""

    standing: dict[str, float] = field(default_factory=dict)
    """Owners with ready jobs -> their pass."""
    owed: dict[str, float] = field(default_factory=dict)
    """Owners whose jobs have run out, while others still have some -> their last pass."""
    last: float | None = None
    """The pass that went last: the present of this share."""

    def enter(self, owner: str) -> None:
        """The owner has a ready job. Whoever comes back pays what it still owes, and has saved nothing up."""
        if owner not in self.standing:
            self.standing[owner] = max(self.owed.pop(owner, 0.0), self.last or 0.0)

    def leave(self, owner: str) -> None:
        """The owner has no ready job any more. Debts are kept as long as there is somebody they are owed to."""
        passed = self.standing.pop(owner)
        if self.standing:
            self.owed[owner] = passed
        else:
            self.owed.clear()
            self.last = None

    def first(self) -> str | None:
        """Whose turn it is: the lowest pass, and among equals the first name."""
        return min(self.standing, key=lambda owner: (self.standing[owner], owner), default=None)

    def charge(self, owner: str, weight: float) -> None:
        self.last = self.standing[owner]
        self.standing[owner] += 1 / weight
