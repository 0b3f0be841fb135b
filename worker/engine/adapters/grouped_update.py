"""The low-rank updates of many adapters as grouped products: rows sorted by adapter slot, a product for each slot.

In place of the masked product of `LayerSlots`, where every row is multiplied with the A of every slot in the span.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F

log = logging.getLogger(__name__)

ALIGNED = 8
"""Features and ranks must be multiples of it: the kernel wants strides of whole 16 bytes, and a bfloat16 has two."""

NO_WAIT_CAPABILITY = 9
"""Major compute capability from which torch's grouped product reads the groups on the device. Below, it copies their
ends to the host and loops over them (pytorch#161407): a wait in every layer, and nothing that a graph can record."""

TRIAL_SLOTS = (2, -1, 0, 2, -1, 0, 0, 5)
"""Adapter slots of the trial's rows: the base among them, and slots without a row."""
TRIAL_TABLE = 6
"""Adapter slots of the trial."""
TOLERANCE = 0.05
"""Largest difference that the trial accepts, in shares of the largest value of the plain path: both round sums to
bfloat16 (steps of 0.4 %), in another order, and twice."""


@dataclass(frozen=True)
class GroupedRows:
    """Rows of a step in the order of their adapter slots; those of the base stand last."""

    order: torch.Tensor
    """[rows], int64: the rows, sorted."""
    back: torch.Tensor
    """[rows], int64: where each row stands in that order."""
    ends: torch.Tensor
    """[slots], int32: where each slot's rows end in that order."""
    adapted: torch.Tensor
    """[rows, 1], bool: whether a row has an adapter."""


def sorted_rows(row_slots: Sequence[int], slots: int) -> tuple[list[int], list[int], list[int]]:
    """`GroupedRows.order`, `back` and `ends` of rows with these adapter slots; a negative slot is the base."""
    counts = [0] * slots
    for slot in row_slots:
        if slot >= 0:
            counts[slot] += 1
    order = sorted(range(len(row_slots)), key=lambda row: row_slots[row] if row_slots[row] >= 0 else slots)
    back = [0] * len(order)
    for place, row in enumerate(order):
        back[row] = place
    return order, back, list(accumulate(counts))


def group_rows(row_slots: Sequence[int], slots: int, device: torch.device) -> GroupedRows:
    """The rows' order on the device, where it is the same for every layer of a step."""
    order, back, ends = (torch.tensor(column) for column in sorted_rows(row_slots, slots))
    return GroupedRows(
        order=order.to(device, non_blocking=True),
        back=back.to(device, non_blocking=True),
        ends=ends.int().to(device, non_blocking=True),
        adapted=torch.tensor([[slot >= 0] for slot in row_slots]).to(device, non_blocking=True),
    )


def with_grouped_update(
    layer_input: torch.Tensor, output: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rows: GroupedRows
) -> torch.Tensor:
    """`output` with each adapter's update of its own rows; the base's rows stay as they are, bit for bit.

    `layer_input` has shape [rows, in_features], `output` [rows, out_features]; `a` [slots * rank, in_features] and
    `b` [slots * rank, out_features] are the tables of all slots, `rank` rows each.
    """
    slots = len(rows.ends)
    of_slot_a, of_slot_b = a.view(slots, -1, a.shape[1]), b.view(slots, -1, b.shape[1])
    low = F.grouped_mm(layer_input[rows.order], of_slot_a.transpose(1, 2), offs=rows.ends)
    update = F.grouped_mm(low, of_slot_b, offs=rows.ends)
    # Behind the last group the product leaves memory as it was, so the base's rows are chosen, not added to.
    return torch.where(rows.adapted, output + update[rows.back], output)


@functools.cache
def grouping_fault(dtype: torch.dtype, device: torch.device, rank: int, inputs: int, outputs: int) -> str | None:
    """Why a layer's updates run as masked products; None where grouped ones can take their place.

    Found out once for each shape, by a small step that is computed both ways on the device. On a GPU a fault is
    logged.
    """
    if device.type != "cuda":
        return f"grouped products are for CUDA devices, not for {device.type}"
    fault = _try_out(dtype, device, rank, inputs, outputs)
    if fault is not None:
        log.warning("adapters' updates of [%d, %d] layers run as masked products: %s", outputs, inputs, fault)
    return fault


def _try_out(dtype: torch.dtype, device: torch.device, rank: int, inputs: int, outputs: int) -> str | None:
    if dtype != torch.bfloat16:
        return f"the kernel multiplies in bfloat16, not in {dtype}"
    uneven = [size for size in (rank, inputs, outputs) if size % ALIGNED]
    if uneven:
        return f"{uneven} (of rank, in_features and out_features) are no multiples of {ALIGNED}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < NO_WAIT_CAPABILITY:
        return f"on compute capability {major}.{minor} it would wait for the host in every layer"
    try:
        return trial_difference(dtype, device, rank, inputs, outputs)
    except (AttributeError, RuntimeError, TypeError) as error:  # no such operation, not for this device, no kernel
        return f"torch {torch.__version__} does not multiply in groups here: {error}"


def trial_difference(dtype: torch.dtype, device: torch.device, rank: int, inputs: int, outputs: int) -> str | None:
    """How a small step in groups differs from each row computed alone; None if it does not."""
    random = torch.Generator().manual_seed(0)
    layer_input, output, a, b = (
        torch.randn(*size, generator=random).div_(size[1] ** 0.5).to(device, dtype)
        for size in (
            (len(TRIAL_SLOTS), inputs),
            (len(TRIAL_SLOTS), outputs),
            (TRIAL_TABLE * rank, inputs),
            (TRIAL_TABLE * rank, outputs),
        )
    )
    found = with_grouped_update(layer_input, output, a, b, group_rows(TRIAL_SLOTS, TRIAL_TABLE, device))
    for row, slot in enumerate(TRIAL_SLOTS):
        if slot < 0:
            if not torch.equal(found[row], output[row]):
                return "a row of the base model was changed"
            continue
        own = slice(slot * rank, (slot + 1) * rank)
        expected = output[row].float() + (a[own].float() @ layer_input[row].float()) @ b[own].float()
        difference = float((found[row].float() - expected).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE:  # NaN is no agreement
            return f"an update differs from that of its row alone by {difference:.2g} of the largest value"
    return None
