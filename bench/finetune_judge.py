"""What an adapter is worth on rows that it never saw: by transformers and PEFT alone, whoever has trained it."""

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from bench.finetune_sides import Batch, Encoded, Sides

ROWS_AT_ONCE = 32
"""Sorted by length before, so that little is padded."""


def held_out_loss(sides: Sides, examples: Encoded, adapter: Path | None) -> float:
    """Mean cross-entropy of the answers' tokens, in nats; without an adapter, of the base."""
    total, tokens = 0.0, 0
    for logits, labels in _forwards(sides, examples, adapter):
        targets = labels[:, 1:]
        total += float(cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="sum"))
        tokens += int((targets != -100).sum())
    return total / tokens


def accuracy(sides: Sides, examples: Encoded, adapter: Path) -> float:
    """Share of the rows whose most likely class is theirs."""
    right = sum(
        int((logits.argmax(dim=-1) == labels).sum()) for logits, labels in _forwards(sides, examples, adapter)
    )
    return right / len(examples)


def _forwards(sides: Sides, examples: Encoded, adapter: Path | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The logits of all examples, batch by batch, and their labels."""
    base = sides.base()
    model = (base if adapter is None else PeftModel.from_pretrained(base, adapter)).eval()
    ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
    for start in range(0, len(ordered), ROWS_AT_ONCE):
        batch: Batch = sides.collate(ordered[start : start + ROWS_AT_ONCE])
        labels = batch.pop("labels")
        with torch.no_grad():
            yield model(**batch).logits, labels
