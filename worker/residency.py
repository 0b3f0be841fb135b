"""Which models are resident: loaded once, shared by all jobs, evicted when another needs the room.

Decides in plain Python; how a model is loaded, and what it weighs, is handed in.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tandem.errors import OutOfMemory
from tandem.specs import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that a worker's residents may take."""

    residents: int
    """All of them together, each with its weights, their faster copies, keys and values, and adapters."""
    kv: int
    """The keys and values of one of them."""

    def kv_beside(self, weights: int) -> int:
        """What the keys and values of a model may take beside its weights and their copies, if it is alone."""
        return max(0, min(self.kv, self.residents - weights))


class Resident(Protocol):
    """What is loaded: it can be closed, and then holds no memory."""

    @property
    def bytes(self) -> int:
        """What it takes now: adapters that come later make it more."""

    def close(self) -> None: ...


R = TypeVar("R", bound=Resident)
Key = tuple[str, Task]
"""(model, task): tasks of one model differ in their heads."""


@dataclass
class _Place(Generic[R]):
    reserved: int
    """Bytes that it was measured to need, before it was loaded."""
    pins: int = 0
    resident: R | None = None
    """None while it is being loaded."""
    failed: BaseException | None = None
    ready: threading.Event = field(default_factory=threading.Event)

    @property
    def bytes(self) -> int:
        return self.reserved if self.resident is None else self.resident.bytes


class ResidentModels(Generic[R]):
    def __init__(self, budget_bytes: int, *, measure: Callable[[Key], int], load: Callable[[Key], R]) -> None:
        """`measure` says how many bytes a model will take at most, with all that it has from the start."""
        self._budget = budget_bytes
        self._measure = measure
        self._load = load
        self._places: OrderedDict[Key, _Place[R]] = OrderedDict()
        """Least recently used first."""
        self._changed = threading.Condition()

    @contextmanager
    def use(self, key: Key) -> Iterator[R]:
        """The model, loaded if need be, and pinned while the block runs.

        Waits while pinned models hold the room. Raises OutOfMemory if it can never fit, and what loading raises.
        """
        place, loads = self._reserve(key)
        try:
            if loads:
                self._fill(key, place)
            else:
                place.ready.wait()
            if place.failed is not None:
                raise place.failed
            assert place.resident is not None
            yield place.resident
        finally:
            with self._changed:
                place.pins -= 1
                self._changed.notify_all()

    def names(self) -> tuple[str, ...]:
        """Models in memory, most recently used last."""
        with self._changed:
            return tuple(key[0] for key, place in self._places.items() if place.resident is not None)

    def residents(self) -> list[R]:
        with self._changed:
            return [place.resident for place in self._places.values() if place.resident is not None]

    def close(self) -> None:
        with self._changed:
            places, self._places = list(self._places.values()), OrderedDict()
        for place in places:
            if place.resident is not None:
                place.resident.close()

    def _reserve(self, key: Key) -> tuple[_Place[R], bool]:
        """A pinned place, and whether the caller must load the model into it."""
        with self._changed:
            place = self._places.get(key)
            if place is None:
                size = self._measure(key)
                if size > self._budget:
                    raise OutOfMemory(
                        f"model {key[0]!r} needs {size} bytes, above the worker's limit of {self._budget} for "
                        "resident models; raise TANDEM_MODEL_BYTES, choose a smaller model or dtype, or on a CPU set "
                        "TANDEM_PACKED_LINEARS=off, which halves it",
                        param="model",
                    )
                # While this waits, another thread may have reserved the same model.
                self._changed.wait_for(lambda: key in self._places or self._make_room(size))
                place = self._places.get(key)
                if place is None:
                    place = self._places[key] = _Place(size, pins=1)
                    return place, True
            place.pins += 1
            self._places.move_to_end(key)
            return place, False

    def _make_room(self, size: int) -> bool:
        """Evict what nobody uses, oldest first, until `size` bytes fit; False if pinned models are in the way."""
        free = self._budget - sum(place.bytes for place in self._places.values())
        idle = [key for key, place in self._places.items() if place.pins == 0]
        while free < size and idle:
            key = idle.pop(0)
            place = self._places.pop(key)
            free += place.bytes
            if place.resident is not None:
                log.info("evict %s (%s)", *key)
                place.resident.close()
        return free >= size

    def _fill(self, key: Key, place: _Place[R]) -> None:
        try:
            place.resident = self._load(key)
        except BaseException as error:
            place.failed = error
            with self._changed:
                # The next user tries again: the fault may be mended by then.
                self._places.pop(key, None)
                self._changed.notify_all()
        finally:
            place.ready.set()
