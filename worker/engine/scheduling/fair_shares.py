"""How much of the engine each owner has had: the virtual token counter of Sheng et al. (2024), in plain Python."""

from collections.abc import Collection


class FairShares:
    """Counts the tokens computed for each owner; whoever has had least goes first among equals.

    An owner who comes back after a pause starts level with those who are there: a pause earns no credit, and a
    newcomer does not lock out the others.
    """

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._level = 0
        """What the owner served last has had: where one starts who finds nobody else."""

    def join(self, owner: str, present: Collection[str]) -> None:
        """Note that `owner` has work; `present` are the owners who had some before."""
        if owner not in present:
            level = min((self.served(name) for name in present), default=self._level)
            self._served[owner] = max(self.served(owner), level)

    def charge(self, owner: str, tokens: int) -> None:
        """Count tokens computed for an owner."""
        self._level = self._served[owner] = self.served(owner) + tokens

    def served(self, owner: str) -> int:
        """Tokens counted for an owner."""
        return self._served.get(owner, 0)
