"""Work of a device that is recorded once and then started with a single call (a CUDA graph)."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE  # what graph_pool_handle returns; it has no public name

Work = Callable[[], torch.Tensor]
"""Reads and writes memory that stays where it is, waits for nothing, and returns a tensor of always one shape."""


class Recorded(Protocol):
    """Work that a call computes anew from what its memory then holds."""

    first: torch.Tensor
    """The result of a run that was not recorded, to compare with."""

    def __call__(self) -> torch.Tensor:
        """Start the work; its result is valid until the next call of a recording with the same memory."""


one_records = threading.Lock()
"""Held while work is recorded: torch allows one recording at a time in a process."""


class Recording:
    """The work, recorded. A call computes it anew from what its memory then holds."""

    def __init__(self, work: Work, *, memory: "_POOL_HANDLE") -> None:
        """Runs the work once and then records it. `memory`: a `torch.cuda.graph_pool_handle()`.

        Recordings that share a memory must not run at the same time, and the result of one is overwritten by the
        next call of any. Raises what the work raises, and RuntimeError for work that cannot be recorded.
        """
        # Kernels are loaded and workspaces made in the first run, which may not happen in a recording. The stream is
        # another one, as torch asks for it.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self.first = work()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads go on using the device: only this thread's work is looked at.
        with one_records, torch.cuda.graph(self._graph, pool=memory, capture_error_mode="thread_local"):
            self._result = work()

    def __call__(self) -> torch.Tensor:
        """Start the work; its result is valid until the next call of a recording with the same memory."""
        self._graph.replay()
        return self._result
