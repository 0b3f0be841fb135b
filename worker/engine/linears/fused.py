"""Linear layers that read the same input, computed in one product.

Transformers' models call q, k and v (gate and up) one after another with the same tensor. The first of them to be
called computes all, the others are handed their part: one product of many outputs keeps the processor busier than
three of few, and calls torch once. Which layers these are is guessed from their names, but nothing rests on the
guess: a part is handed out for the very tensor that it was computed from, and computed anew for any other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from worker.engine.adapters.layer_slots import Product

SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
)
"""Names of sibling layers that read the same input: the Llama family's, BERT's, and of gated feed-forwards."""


@dataclass(frozen=True)
class _Computed:
    layer_input: torch.Tensor
    parts: dict[int, torch.Tensor]
    """By the layer's index: those that were not handed out yet."""


class FusedProduct:
    """The products of several layers over one input. Layers of another thread only cost it the saving."""

    def __init__(self, product: Product, outputs: Sequence[int]) -> None:
        """`product` computes all layers' outputs side by side; `outputs` are each layer's out_features."""
        self._product = product
        self._outputs = list(outputs)
        self._computed: _Computed | None = None

    def parts(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Each layer's own product, in the order of `outputs`."""
        return [partial(self._part, index) for index in range(len(self._outputs))]

    def _part(self, index: int, layer_input: torch.Tensor) -> torch.Tensor:
        """[..., outputs[index]], a view into the columns of all.

        The input must not be written to between the layers' calls; held by identity, it cannot be freed and its
        address given to another. A part is handed out once, since its taker may add to it in place.
        """
        computed = self._computed
        if computed is None or computed.layer_input is not layer_input or index not in computed.parts:
            parts = self._product(layer_input).split(self._outputs, dim=-1)
            computed = _Computed(layer_input, dict(enumerate(parts)))
        part = computed.parts.pop(index)
        self._computed = computed if computed.parts else None
        return part


def same_input_groups(paths: Iterable[str]) -> list[tuple[str, ...]]:
    """The layers' paths, each in one group: siblings that read the same input together, every other alone."""
    paths = list(paths)
    left = set(paths)
    groups = []
    for path in paths:
        if path not in left:
            continue
        parent, dot, name = path.rpartition(".")
        siblings = next((names for names in SAME_INPUT if name in names), (name,))
        group = tuple(sibling for each in siblings if (sibling := f"{parent}{dot}{each}") in left)
        left.difference_update(group)
        groups.append(group)
    return groups
