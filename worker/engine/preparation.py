"""What must lie in a sequence's slots before it runs: its adapter's weights, and keys and values to go on from."""

import time
from collections.abc import Collection

from worker.engine.adapters.bank import AdapterBank
from worker.engine.adapters.prefix import PrefixKV
from worker.engine.counts import EngineCounts
from worker.engine.kv.slots import KVSlots
from worker.engine.scheduling.scheduler import Parking, Start
from worker.engine.sequence import Sequence


class Preparation:
    """Carries out in torch what the scheduler's admission has decided."""

    def __init__(self, kv: KVSlots, bank: AdapterBank, counts: EngineCounts) -> None:
        self._kv = kv
        self._bank = bank
        self._counts = counts

    def park(self, parking: Parking) -> None:
        """Copy to the host what a sequence that gives way has computed."""
        self._counts.parked += 1
        if parking.positions:
            parking.sequence.parked = self._kv.park(parking.slot, parking.positions)

    def make_ready(self, start: Start, *, spoiled: Collection[int]) -> None:
        """Load the adapter; restore, copy or begin the keys and values.

        `spoiled` are slots that were to be copied from, and whose own sequences could not be made ready. Raises what
        copying raises, out of memory above all.
        """
        sequence = start.sequence
        self._counts.wait_seconds += time.monotonic() - sequence.waiting_since
        if start.loads_adapter:
            self._load_adapter(sequence)
        assert sequence.slot is not None
        if sequence.parked is not None:
            self._kv.restore(sequence.slot, sequence.parked)
            sequence.parked = None
        elif start.copies is not None:
            if start.copies.copy_from in spoiled:
                sequence.prefilled = sequence.reused_tokens = 0  # it reads its prompt itself
            elif start.copies.copy_from is not None:
                self._kv.copy_beginning(start.copies.copy_from, sequence.slot, sequence.prefilled)
            self._begin(sequence)

    def _load_adapter(self, sequence: Sequence) -> None:
        assert sequence.adapter is not None
        assert sequence.adapter_slot is not None
        self._bank.load(sequence.adapter_slot, sequence.adapter)
        self._counts.adapter_loads += 1

    def _begin(self, sequence: Sequence) -> None:
        self._counts.sequences += 1
        self._counts.prompt_tokens += len(sequence.prompt_tokens)
        self._counts.reused_tokens += sequence.reused_tokens
        prefix = None if sequence.adapter is None else sequence.adapter.prefix
        if isinstance(prefix, PrefixKV) and not sequence.prefilled:
            assert sequence.slot is not None
            self._kv.write_prefix(sequence.slot, prefix.keys, prefix.values)
            sequence.prefilled = prefix.length
