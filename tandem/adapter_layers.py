"""What an adapter's tensors for one linear layer tell of it, by their shapes alone: its sizes and its rank."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tandem.errors import InvalidRequest
from tandem.specs.methods import MAX_LORA_RANK
from tandem.specs.peft_config import MAX_QUOTED

Shapes = Mapping[str, tuple[int, ...]]
"""A layer's tensors by the names that PEFT gives them: see LAYER_PARTS."""


@dataclass(frozen=True, slots=True)
class LayerChange:
    """An adapter's weights for one linear layer; a size that they do not tell is None."""

    in_features: int | None
    out_features: int | None
    rank: int = 0
    """0 for factors, which have none."""


def refusal(reason: str) -> InvalidRequest:
    """The error of an adapter whose files cannot be served."""
    return InvalidRequest(f"the adapter cannot be served: {reason}", param="file")


def _factors(path: str, shapes: Shapes) -> LayerChange:
    """(IA)³ (Liu et al. 2022): [1, in] for a feed-forward layer's inputs, [out, 1] for another's outputs."""
    shape = shapes["ia3_l"]
    if len(shape) != 2 or 1 not in shape:
        raise refusal(f"ia3_l of {path[:MAX_QUOTED]} has the shape {shape}; it must be [1, in] or [out, 1]")
    return LayerChange(None, shape[0]) if shape[1] == 1 else LayerChange(shape[1], None)


def _low_rank(path: str, shapes: Shapes) -> LayerChange:
    """A [rank, in] and B [out, rank]; E [rank, 1] of AdaLoRA, the outputs' magnitudes [out] of DoRA."""
    a, b = (shapes.get(f"lora_{name}.weight") or shapes.get(f"lora_{name}") or () for name in "AB")
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or min(*a, *b) < 1:
        raise refusal(f"lora_A and lora_B of {path[:MAX_QUOTED]} have the shapes {a} and {b}, which do not fit")
    rank, in_features, out_features = a[0], a[1], b[0]
    if rank > MAX_LORA_RANK:
        raise refusal(f"rank {rank} of {path[:MAX_QUOTED]} is above the limit of {MAX_LORA_RANK}")
    for name, expected in (("lora_E", (rank, 1)), ("lora_magnitude_vector", (out_features,))):
        if shapes.get(name, expected) != expected:
            raise refusal(f"{name} of {path[:MAX_QUOTED]} has the shape {shapes[name]}; it must be {expected}")
    return LayerChange(in_features, out_features, rank)


def _hadamard(path: str, shapes: Shapes) -> LayerChange:
    """LoHa (Hyeon-Woo et al. 2022): two products of [out, rank] and [rank, in]."""
    sizes = {_product(path, shapes, f"hada_{name}_a", f"hada_{name}_b") for name in ("w1", "w2")}
    if len({size[:2] for size in sizes}) != 1:
        raise refusal(f"hada_w1 and hada_w2 of {path[:MAX_QUOTED]} are of layers of other sizes")
    out_features, in_features, _ = next(iter(sizes))
    return LayerChange(in_features, out_features, max(rank for *_, rank in sizes))


def _kronecker(path: str, shapes: Shapes) -> LayerChange:
    """LoKr (Yeh et al. 2024): two matrices, each whole or a product; the layer's sizes are the products of theirs."""
    rows, columns, ranks = 1, 1, [0]
    for name in ("lokr_w1", "lokr_w2"):
        whole = shapes.get(name)
        if whole is None:
            out, inputs, rank = _product(path, shapes, f"{name}_a", f"{name}_b")
            ranks.append(rank)
        elif len(whole) != 2 or min(whole) < 1:
            raise refusal(f"{name} of {path[:MAX_QUOTED]} has the shape {whole}; it must be a matrix")
        else:
            out, inputs = whole
        rows, columns = rows * out, columns * inputs
    return LayerChange(columns, rows, max(ranks))


def _product(path: str, shapes: Shapes, left: str, right: str) -> tuple[int, int, int]:
    """(rows, columns, rank) of [rows, rank] times [rank, columns]."""
    a, b = shapes.get(left, ()), shapes.get(right, ())
    if len(a) != 2 or len(b) != 2 or a[1] != b[0] or min(*a, *b) < 1:
        raise refusal(f"{left} and {right} of {path[:MAX_QUOTED]} have the shapes {a} and {b}, which do not fit")
    return a[0], b[1], a[1]


def _vectors(path: str, shapes: Shapes) -> LayerChange:
    """VeRA (Kopiczko et al. 2024): a factor for each output, and one for each rank."""
    of_outputs, of_ranks = shapes["vera_lambda_b"], shapes["vera_lambda_d"]
    if len(of_outputs) != 1 or len(of_ranks) != 1:
        raise refusal(f"vera_lambda_b and vera_lambda_d of {path[:MAX_QUOTED]} must be vectors")
    return LayerChange(None, of_outputs[0], of_ranks[0])


def _rotations(path: str, shapes: Shapes) -> LayerChange:
    """OFT (Qiu et al. 2023): [blocks, elements above a block's diagonal]."""
    if len(shapes["oft_R.weight"]) != 2:
        raise refusal(f"oft_R of {path[:MAX_QUOTED]} has the shape {shapes['oft_R.weight']}; it must be a matrix")
    return LayerChange(None, None)


CHANGES: dict[str, Callable[[str, Shapes], LayerChange]] = {
    "LORA": _low_rank,
    "ADALORA": _low_rank,
    "LOHA": _hadamard,
    "LOKR": _kronecker,
    "VERA": _vectors,
    "IA3": _factors,
    "OFT": _rotations,
}
"""How each kind's tensors of one layer are read."""
