"""Which row of a shard kills its workers: found out from the rows that were in flight when attempts were lost.

Those rows become suspects: later attempts run them after all others and one at a time, so that the next loss has one
row to blame. What is known is kept in the job's checkpoint, from where the next attempt goes on.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tandem.shard_rows import ShardRow

LOSSES_ALONE = 2
"""A row that was alone in flight at so many losses is to blame. One may be chance: a host that lost its power."""


class RowSuspects:
    """Of one attempt. A shard with `n` rows that kill is lost at most (1 + LOSSES_ALONE) times `n`: each loss of rows
    in company makes one more of these `n` a suspect, each loss of a row alone brings one nearer to its end.
    """

    def __init__(self, left: Mapping[str, Any] | None, crashes: int) -> None:
        """`left` is the last `record` of an earlier attempt, `crashes` how often the job was lost until now."""
        self._crashes = crashes
        self._losses: dict[int, int] = {}
        """Suspect -> how often it was alone in flight when an attempt was lost."""
        self._in_flight: list[int] = []
        self.is_news = False
        """`record` must be kept before anything else is done: what the last one says was in flight no longer is."""
        if left is None:
            return
        self.is_news = bool(left["in_flight"])
        self._losses = {int(row): losses for row, losses in left["losses"].items()}
        # An attempt that was given back, by a drain or a pause, casts no suspicion.
        if crashes > left["crashes"]:
            self._note_loss(left["in_flight"])

    @property
    def condemned(self) -> list[int]:
        """Rows that are to run no more."""
        return [row for row, losses in self._losses.items() if losses >= LOSSES_ALONE]

    def set_apart(self, rows: Iterable[ShardRow]) -> tuple[list[ShardRow], list[ShardRow]]:
        """Rows above suspicion, to be run first and together, and suspects, to be run one at a time in this order."""
        others: list[ShardRow] = []
        suspects: list[ShardRow] = []
        for row in rows:
            (suspects if row.row in self._losses else others).append(row)
        # Those least under suspicion first: the guilty one is to end the attempt as late as it can.
        return others, sorted(suspects, key=lambda row: self._losses[row.row])

    def begin(self, row: int, beside: Iterable[int]) -> bool:
        """`row` is about to run `beside` others, of which some may begin soon. True: `record` must be kept before."""
        if row in self._in_flight:
            return False
        self._in_flight = [row, *beside]
        return True

    def record(self) -> dict[str, Any]:
        """What a later attempt must know, ready for JSON."""
        return {"crashes": self._crashes, "in_flight": self._in_flight, "losses": self._losses}

    def _note_loss(self, in_flight: list[int]) -> None:
        for row in in_flight:
            self._losses.setdefault(row, 0)
        if len(in_flight) == 1:
            self._losses[in_flight[0]] += 1
