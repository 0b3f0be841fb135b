"""Adapters in host memory, read from the artifact store in the asking job's thread, off the serving path."""

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from transformers import PreTrainedModel

from tandem.adapters import AdapterStore

ADAPTERS_KEPT = 256
"""Adapters of rank 8 on a 1B model weigh about 10 MB each: a few GB of host memory at most."""

Weights = TypeVar("Weights")


class AdapterCache(Generic[Weights]):
    """Least recently used adapters leave first. An adapter is immutable, so what is cached is never stale."""

    def __init__(self, adapters: AdapterStore, read: Callable[[str, Path, PreTrainedModel], Weights]) -> None:
        """`read` makes the weights of an adapter's id and PEFT folder, for the model that it was trained on."""
        self._adapters = adapters
        self._read = read
        self._kept: OrderedDict[str, Weights] = OrderedDict()
        self._lock = threading.Lock()

    def pinned(self, base: str) -> frozenset[str]:
        """Ids of a model's adapters that are to keep their slots."""
        return self._adapters.pinned(base)

    def get(self, adapter: str, model: PreTrainedModel) -> Weights:
        """Raises UnknownAdapter, and what `read` raises of an adapter that cannot be served."""
        # A deleted adapter must not be served from memory: the index is asked each time.
        manifest = self._adapters.get(adapter)
        with self._lock:
            if adapter in self._kept:
                self._kept.move_to_end(adapter)
                return self._kept[adapter]
        with tempfile.TemporaryDirectory(prefix="tandem-adapter-") as folder:
            self._adapters.fetch(manifest, Path(folder))
            weights = self._read(adapter, Path(folder), model)
        with self._lock:
            self._kept[adapter] = weights
            if len(self._kept) > ADAPTERS_KEPT:
                self._kept.popitem(last=False)
        return weights
