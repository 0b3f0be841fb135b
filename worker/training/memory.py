"""How much memory a training takes."""

import resource
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")
KIBIBYTE = 1024
"""The unit of ru_maxrss on Linux."""


def memory_bytes(device: torch.device) -> int:
    """Of a GPU, what torch's tensors in this process take there; else what the process takes of the machine's."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE  # the most that it ever took
