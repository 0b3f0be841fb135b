"""Which kernels this machine has: found out once, by comparing each with torch's own operations.

It needs no numba itself, and imports what does only on demand.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

log = logging.getLogger(__name__)

DTYPES = (torch.bfloat16, torch.float32)
"""What the kernels compute with. No processor that runs them multiplies float16 faster than either."""


class RowAttention(Protocol):
    """`row_attention.attend_rows`"""

    def __call__(
        self,
        stored: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        positions: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        window: int | None,
        scale: float,
        used: int,
        out: torch.Tensor,
    ) -> None: ...


class RmsNorm(Protocol):
    """`norm.rms_norm`"""

    def __call__(
        self, rows: torch.Tensor, weight: torch.Tensor, epsilon: float, *, one_more: bool = False
    ) -> torch.Tensor: ...


Largest = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From logits, [rows, vocabulary], to each row's argmax and logsumexp: `largest.largest`, or torch's operations."""

Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Kernels:
    """Those of one dtype; their own modules say what each computes."""

    rms_norm: RmsNorm
    silu_times: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    rotate: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
    attend_rows: RowAttention
    add_pairs: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int],
        None,
    ]
    largest: Largest
    few_rows: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], Product] | None
    """From oneDNN's packed weight, the plain one and the bias: the product for up to `most_rows` rows. None without
    instructions for pairs of bfloat16, or where oneDNN's order is not the one known."""
    most_rows: int


def kernels_for(model: PreTrainedModel) -> Kernels | None:
    """The kernels for a model; None where it is not on a CPU, or where they do not run: the log then says why."""
    if model.device.type != "cpu" or model.dtype not in DTYPES:
        return None
    found = _tried(model.dtype)
    return found if isinstance(found, Kernels) else None


def kernels_fault(dtype: torch.dtype) -> str | None:
    """Why there are no kernels for this dtype here; None when there are."""
    found = _tried(dtype)
    return found if isinstance(found, str) else None


@functools.cache
def _tried(dtype: torch.dtype) -> Kernels | str:
    """The kernels, or what is wrong with them. The first time on a machine, compiling them takes five seconds."""
    if dtype not in DTYPES:
        return f"there are no kernels for {dtype}"
    found: Kernels | str
    try:
        from worker.engine.kernels import trial

        found = trial.tried(dtype)
    except ImportError as error:
        found = f"numba is not there: {error}"
    except Exception as error:  # whatever a compiler raises on a machine we have not seen: torch's operations serve
        found = f"they do not compile or run here: {error}"
    if isinstance(found, str):
        log.warning("decode steps in %s run without kernels, and slower: %s", dtype, found)
    return found
