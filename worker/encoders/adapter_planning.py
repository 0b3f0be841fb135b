"""Which rows of a batch run in one forward over a body with few adapter slots, decided in plain Python."""

from collections.abc import Collection, Sequence


def plan_forwards(adapters: Sequence[str | None], *, slots: int, alone: Collection[str]) -> list[list[int]]:
    """Cut a batch into forwards of at most `slots` adapters each.

    `adapters` are the rows' adapter ids (None: the base); `alone` those that share a forward with nobody else. Gives
    the rows' places: every row is in exactly one forward, and all rows of one adapter are in the same.
    """
    rows: dict[str | None, list[int]] = {}
    for place, adapter in enumerate(adapters):
        rows.setdefault(adapter, []).append(place)
    lonely = [places for adapter, places in rows.items() if adapter in alone]
    # The base's rows need no slot, and go with the first ones.
    base = rows.get(None, [])
    sociable = [places for adapter, places in rows.items() if adapter is not None and adapter not in alone]
    groups = [sociable[first : first + slots] for first in range(0, len(sociable), slots)] if sociable else []
    forwards = [sorted(place for places in group for place in places) for group in groups]
    if base:
        forwards = [sorted(base + forwards[0]), *forwards[1:]] if forwards else [base]
    return forwards + lonely
