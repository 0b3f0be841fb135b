"""Loads one of transformers' pipelines, or of those that its version 5 dropped, with all that its folder needs."""

from pathlib import Path
from typing import Any

import torch
from transformers import pipeline

from worker.pipelines import library_name, register


def load_pipeline(
    task: str,
    source: str | Path,
    *,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """The pipeline on `device`, of safetensors alone and without running code that comes with the model.

    Not to be called from two threads at once: see worker/loading.py. Raises what the library raises: OSError,
    ValueError, KeyError, ImportError, RuntimeError.
    """
    register()
    made: Any = pipeline(
        library_name(task),  # type: ignore[call-overload]  # the overloads know the library's own tasks alone
        model=str(source),
        revision=revision,
        trust_remote_code=False,
        dtype=dtype,
        device=device,
        model_kwargs={"use_safetensors": True},
    )
    return made
