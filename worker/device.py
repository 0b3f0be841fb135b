"""The device of this process: which one, how much memory, which dtype it computes well with."""

import os

import torch

from tandem.errors import ConfigurationError
from tandem.settings import WorkerSettings
from worker.residency import MemoryBudget

MODEL_SHARE = 0.75
"""Of the device's memory for resident models by default, keys and values of their engines included."""

KV_SHARE = 1 / 6
"""Of the device's memory, within that share, for the keys and values of one engine by default: two engines leave half
of it to weights."""

TRAINING_SHARE = 1 / 6
"""Of the device's memory for the activations of all trainings together: beside the resident models a twelfth is left
for all else. A training that needs more runs alone."""


def choose_device(setting: str) -> torch.device:
    """`auto` is the GPU if there is one. Raises ConfigurationError for a device that is not there."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError as error:
        raise ConfigurationError(
            f"TANDEM_DEVICE={setting!r}: use auto, cpu or cuda[:n]", param="TANDEM_DEVICE"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"TANDEM_DEVICE={setting!r}, but this torch sees no GPU; use cpu, or install a CUDA build",
            param="TANDEM_DEVICE",
        )
    return device


def memory_bytes(device: torch.device) -> int:
    """All memory of the device, used or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_budget(settings: WorkerSettings, device: torch.device) -> MemoryBudget:
    """What the settings allow the resident models, or their share of the device's memory."""
    memory = memory_bytes(device)
    return MemoryBudget(
        residents=settings.model_bytes or int(memory * MODEL_SHARE), kv=settings.kv_bytes or int(memory * KV_SHARE)
    )


def choose_dtype(setting: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies matrices in it, float32 elsewhere."""
    if setting != "auto":
        dtype = getattr(torch, setting)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    capable = torch.cpu.get_capabilities()
    return torch.bfloat16 if capable.get("avx512_bf16") or capable.get("amx_bf16") else torch.float32
