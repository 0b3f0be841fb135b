"""Which adapter is in which slot of the adapter bank: pins and least-recently-used eviction, in plain Python."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterClaim:
    """A slot that `AdapterSlots.claim` gave to a sequence."""

    slot: int
    is_miss: bool
    """The adapter was not in the slot before: its weights must be loaded there now."""


class AdapterSlots:
    """Assigns adapters to slots. An adapter that a running sequence uses is pinned and never evicted."""

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"adapter_slots must be 0 or more, not {count}")
        self._free = list(range(count - 1, -1, -1))  # popped from the end: the lowest slot first
        self._slots: dict[str, int] = {}  # the order is that of use: the least recently used comes first
        self._pins: dict[str, int] = {}

    @property
    def pinned(self) -> int:
        """Adapters that running sequences use."""
        return len(self._pins)

    @property
    def resident(self) -> dict[str, int]:
        """The adapters held, with their slots, least recently used first."""
        return dict(self._slots)

    def can_claim(self, adapter_id: str) -> bool:
        """Whether `claim` would give a slot: the adapter has one, one is free, or one can be evicted."""
        return adapter_id in self._slots or bool(self._free) or len(self._pins) < len(self._slots)

    def claim(self, adapter_id: str) -> AdapterClaim | None:
        """Pin the adapter for one more sequence; None when every slot holds another pinned adapter."""
        if not self.can_claim(adapter_id):
            return None
        is_miss = adapter_id not in self._slots
        if not is_miss:
            slot = self._slots.pop(adapter_id)  # put back below, as the most recently used
        elif self._free:
            slot = self._free.pop()
        else:
            evicted = next(held for held in self._slots if held not in self._pins)
            slot = self._slots.pop(evicted)
        self._slots[adapter_id] = slot
        self._pins[adapter_id] = self._pins.get(adapter_id, 0) + 1
        return AdapterClaim(slot, is_miss)

    def release(self, adapter_id: str) -> None:
        """Undo one `claim`. The adapter stays in its slot until another one needs it."""
        self._pins[adapter_id] -= 1
        if self._pins[adapter_id] == 0:
            del self._pins[adapter_id]

    def forget(self, adapter_id: str) -> None:
        """Empty the slot of an adapter that nobody uses, because its weights are not (all) there."""
        if adapter_id in self._pins:
            raise RuntimeError(f"adapter {adapter_id!r} is in use and cannot be forgotten")
        self._free.append(self._slots.pop(adapter_id))
