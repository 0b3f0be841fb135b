"""An adapter's folder as PEFT writes it: its two files, and which methods and settings are served."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tandem.errors import InvalidRequest
from tandem.specs.peft_config import CONFIG_FILE, WEIGHTS_FILE, unserved


def refusal(adapter_id: str, reason: str) -> InvalidRequest:
    """The error of an adapter whose files cannot be served."""
    return InvalidRequest(f"adapter {adapter_id!r} cannot be served: {reason}", param="adapter")


def read_config(
    adapter_id: str,
    folder: Path,
    *,
    methods: dict[str, frozenset[str]],
    also_served: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """The folder's CONFIG_FILE, whose `peft_type` is one of `methods`.

    `also_served` are fields that the caller acts on besides the method's own. Raises InvalidRequest if the file
    cannot be read, or asks for what is not served.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refusal(adapter_id, f"{CONFIG_FILE} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise refusal(adapter_id, f"{CONFIG_FILE} is not a JSON object")
    reason = unserved(config, methods=methods, also_served=also_served)
    if reason is not None:
        raise refusal(adapter_id, reason)
    return config


def read_tensors(adapter_id: str, folder: Path) -> dict[str, torch.Tensor]:
    """All of WEIGHTS_FILE, on the host. Raises InvalidRequest if it cannot be read or holds values not finite."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise refusal(adapter_id, f"{WEIGHTS_FILE} cannot be read ({error})") from error
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise refusal(adapter_id, f"{key} holds values that are not finite")
    return tensors


def ready_to_copy(adapter_id: str, what: str, values: torch.Tensor, dtype: torch.dtype, *, pin: bool) -> torch.Tensor:
    """`values` contiguous in `dtype` on the host; `pin` for a copy to a GPU that nobody waits for.

    Raises InvalidRequest for values that overflow `dtype`: in a batch they would reach other rows, as 0 * inf is NaN.
    """
    converted = values.to("cpu", dtype)
    if not torch.isfinite(converted).all():
        raise refusal(adapter_id, f"its weights of {what} overflow {dtype}")
    converted = converted.contiguous()
    return converted.pin_memory() if pin else converted
