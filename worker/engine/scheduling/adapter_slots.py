"""Which adapter is in which slot of the adapter bank: least-recently-used eviction, and whom it spares."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterClaim:
    """A slot that `AdapterSlots.claim` gave to a sequence."""

    slot: int
    is_miss: bool
    """The adapter was not in the slot before: its weights must be loaded there now."""


class AdapterSlots:
    """Assigns adapters to slots. One that a running sequence uses, or that is pinned, is never evicted."""

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"adapter_slots must be 0 or more, not {count}")
        self._count = count
        self._free = list(range(count - 1, -1, -1))  # popped from the end: the lowest slot first
        self._slots: dict[str, int] = {}  # the order is that of use: the least recently used comes first
        self._users: dict[str, int] = {}
        self.pinned: frozenset[str] = frozenset()
        """Adapters that keep their slots while nobody uses them."""

    @property
    def used(self) -> int:
        """Adapters that running sequences use."""
        return len(self._users)

    @property
    def resident(self) -> dict[str, int]:
        """The adapters held, with their slots, least recently used first."""
        return dict(self._slots)

    def pin(self, adapters: frozenset[str]) -> None:
        """Pin these and no others; of more than all slots but one the first by name, so that others can be served."""
        self.pinned = frozenset(sorted(adapters)[: max(0, self._count - 1)])

    def can_claim(self, adapter_id: str) -> bool:
        """Whether `claim` would give a slot: the adapter has one, one is free, or one can be evicted."""
        return adapter_id in self._slots or bool(self._free) or self._evictable() is not None

    def claim(self, adapter_id: str) -> AdapterClaim | None:
        """A slot with the adapter for one more sequence; None when no other adapter can leave its own."""
        if not self.can_claim(adapter_id):
            return None
        is_miss = adapter_id not in self._slots
        if not is_miss:
            slot = self._slots.pop(adapter_id)  # put back below, as the most recently used
        elif self._free:
            slot = self._free.pop()
        else:
            evicted = self._evictable()
            assert evicted is not None, "it can be claimed"
            slot = self._slots.pop(evicted)
        self._slots[adapter_id] = slot
        self._users[adapter_id] = self._users.get(adapter_id, 0) + 1
        return AdapterClaim(slot, is_miss)

    def release(self, adapter_id: str) -> None:
        """Undo one `claim`. The adapter stays in its slot until another one needs it."""
        self._users[adapter_id] -= 1
        if self._users[adapter_id] == 0:
            del self._users[adapter_id]

    def forget(self, adapter_id: str) -> None:
        """Empty the slot of an adapter that nobody uses, because its weights are not (all) there."""
        if adapter_id in self._users:
            raise RuntimeError(f"adapter {adapter_id!r} is in use and cannot be forgotten")
        self._free.append(self._slots.pop(adapter_id))

    def _evictable(self) -> str | None:
        """The adapter that makes room for the next one: the least recently used of those that may leave."""
        return next((held for held in self._slots if held not in self._users and held not in self.pinned), None)
