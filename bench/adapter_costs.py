"""What one adapter takes: bytes in its file, on the host and in a slot, and the time to read and to load it."""

import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.decoder import load_plain
from bench.timing import timed
from worker.engine.adapters.bank import AdapterBank
from worker.engine.adapters.linear_update import LinearUpdate
from worker.engine.adapters.peft_folder import WEIGHTS_FILE
from worker.engine.adapters.prefix import PrefixKV
from worker.engine.adapters.weights import AdapterWeights, read_adapter

TRIES = 9
"""Readings and loads; the median counts."""


def measure_costs(folder: Path, *, slots: int, rank: int) -> dict[str, float]:
    """Of the adapter in a PEFT folder, with a bank of `slots` slots of rank `rank`."""
    model, _ = load_plain()
    read_seconds = statistics.median(timed(lambda: read_adapter("costs", folder, model)) for _ in range(TRIES))
    adapter = read_adapter("costs", folder, model)
    bank = AdapterBank(slots=slots, rank=rank)
    bank.take_over(model, head=model.get_output_embeddings())
    bank.load(0, adapter)  # the first of its kind allocates the layers' tables
    load_seconds = statistics.median(timed(lambda: bank.load(0, adapter)) for _ in range(TRIES))
    return {
        "file_bytes": (folder / WEIGHTS_FILE).stat().st_size,
        "host_bytes": sum(tensor.nbytes for tensor in _tensors(adapter)),
        "slot_bytes": sum(_slot_bytes(update, rank) for update in adapter.modules.values()),
        "read_ms": read_seconds * 1000,
        "load_ms": load_seconds * 1000,
    }


def _tensors(adapter: AdapterWeights) -> Iterator[torch.Tensor]:
    for update in adapter.modules.values():
        parts = (update.a, update.b, update.input_scale, update.output_scale, update.output_shift)
        yield from (part for part in parts if part is not None)
    if isinstance(adapter.prefix, PrefixKV):
        yield from (adapter.prefix.keys, adapter.prefix.values)
    elif adapter.prefix is not None:
        yield adapter.prefix.embeddings


def _slot_bytes(update: LinearUpdate, rank: int) -> int:
    """Of one layer: a pair takes the bank's whole rank, whatever its own. A prefix takes no slot, but positions of
    each sequence's keys and values."""
    pairs = [part for part in (update.a, update.b) if part is not None]
    scales = [part for part in (update.input_scale, update.output_scale, update.output_shift) if part is not None]
    return sum(part.nbytes // len(part) * rank for part in pairs) + sum(part.nbytes for part in scales)
