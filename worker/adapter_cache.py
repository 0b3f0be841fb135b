"""Adapters in host memory, read from the artifact store in the asking job's thread, off the serving path."""

import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

from transformers import PreTrainedModel

from tandem.adapters import AdapterStore
from worker.engine.adapter_weights import AdapterWeights, read_adapter

ADAPTERS_KEPT = 256
"""Adapters of rank 8 on a 1B model weigh about 10 MB each: a few GB of host memory at most."""


class AdapterCache:
    """Least recently used adapters leave first. An adapter is immutable, so what is cached is never stale."""

    def __init__(self, adapters: AdapterStore) -> None:
        self._adapters = adapters
        self._kept: OrderedDict[str, AdapterWeights] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, adapter: str, model: PreTrainedModel, *, rank_limit: int) -> AdapterWeights:
        """Raises UnknownAdapter, AdapterMismatch if it does not fit the model, InvalidRequest above `rank_limit`."""
        # A deleted adapter must not be served from memory: the index is asked each time.
        manifest = self._adapters.get(adapter)
        with self._lock:
            if adapter in self._kept:
                self._kept.move_to_end(adapter)
                return self._kept[adapter]
        with tempfile.TemporaryDirectory(prefix="tandem-adapter-") as folder:
            self._adapters.fetch(manifest, Path(folder))
            weights = read_adapter(adapter, Path(folder), model, rank_limit=rank_limit)
        with self._lock:
            self._kept[adapter] = weights
            if len(self._kept) > ADAPTERS_KEPT:
                self._kept.popitem(last=False)
        return weights
