"""Which tokens' keys and values every sequence slot holds, so that a prompt that begins the same is not read again.

Keys and values depend on all tokens before them, on the adapter, and on nothing else: equal beginnings under one
adapter have equal keys and values (Kwon et al. 2023 share them as blocks; here a slot's beginning is copied, or the
slot is taken over). Plain Python, tested without a model.
"""

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

MIN_REUSED_TOKENS = 8
"""Tokens. A shorter beginning is read again: copying it layer by layer would take about as long."""


@dataclass(frozen=True)
class SlotContent:
    """What a slot holds the keys and values of."""

    key: Hashable
    """Only sequences with an equal key may use it: the adapter's id, and whose it is."""
    tokens: Sequence[int]


@dataclass(frozen=True)
class Placement:
    """The slot of a new sequence, and where the beginning of its prompt comes from."""

    slot: int
    reused: int
    """Tokens of the prompt whose keys and values need not be computed."""
    copy_from: int | None
    """The slot to copy them from; None where they are in `slot` already, or where there are none."""


class SlotContents:
    """The free slots, and the contents of all. A slot that is freed keeps its content until somebody needs it."""

    def __init__(self, slots: int) -> None:
        self._free = list(range(slots))  # a heap: low slots first keep the decoding rows close together
        self._held: dict[int, SlotContent] = {}  # in the order of use: the least recently used comes first

    @property
    def free(self) -> int:
        """Slots that nobody runs in."""
        return len(self._free)

    def match(self, key: Hashable, prompt: Sequence[int], running: dict[int, SlotContent]) -> tuple[int, int]:
        """The slot that holds most of the prompt's beginning, and how many tokens; (-1, 0) if none holds enough.

        `running` are the contents of the slots in use. The last token is never counted: it must be computed, since
        its output chooses the first new one.
        """
        best, length = -1, MIN_REUSED_TOKENS - 1
        for slot, content in (*self._held.items(), *running.items()):
            if content.key == key:
                common = common_beginning(content.tokens, prompt, limit=len(prompt) - 1)
                if common > length:
                    best, length = slot, common
        return (best, length) if best >= 0 else (-1, 0)

    def place(self, key: Hashable | None, prompt: Sequence[int], running: dict[int, SlotContent]) -> Placement:
        """Take a free slot for a prompt; there must be one. A prompt with the key None shares nothing."""
        source, reused = (-1, 0) if key is None else self.match(key, prompt, running)
        if source in self._held and (len(self._free) == 1 or 2 * reused >= len(self._held[source].tokens)):
            # Going on in the slot loses less of its content than it uses, as in the next turn of a conversation.
            self._free.remove(source)
            heapq.heapify(self._free)
            del self._held[source]
            return Placement(source, reused, None)
        slot = self._take(sparing=source)
        return Placement(slot, reused, source if reused else None)

    def take(self) -> int:
        """Take a free slot for a sequence that brings its keys and values along; there must be one."""
        return self._take(sparing=-1)

    def release(self, slot: int, content: SlotContent | None) -> None:
        """Give back a slot, with what it now holds; None if that must not be used."""
        heapq.heappush(self._free, slot)
        if content is not None and len(content.tokens) > MIN_REUSED_TOKENS:
            self._held[slot] = content

    def forget(self, key: Hashable) -> None:
        """Drop what is held under a key."""
        self._held = {slot: content for slot, content in self._held.items() if content.key != key}

    def _take(self, *, sparing: int) -> int:
        """The lowest free slot without content, else the one whose content was not used for longest."""
        empty = [slot for slot in self._free if slot not in self._held]
        slot = min(empty) if empty else next(slot for slot in self._held if slot != sparing)
        self._free.remove(slot)
        heapq.heapify(self._free)
        self._held.pop(slot, None)
        if sparing in self._held:
            self._held[sparing] = self._held.pop(sparing)  # put last: it was used just now
        return slot


def common_beginning(one: Sequence[int], other: Sequence[int], *, limit: int) -> int:
    """How many tokens the two have in common at their beginning, up to `limit`."""
    end = min(len(one), len(other), limit)
    if end <= 0 or one[0] != other[0]:
        return 0
    low = 1  # equal up to here
    while low < end:
        middle = (low + end + 1) // 2
        if tuple(one[low:middle]) == tuple(other[low:middle]):
            low = middle
        else:
            end = middle - 1
    return low
