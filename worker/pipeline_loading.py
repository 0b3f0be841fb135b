"""Loads one of transformers' pipelines, or of those that its version 5 dropped, with all that its folder needs; or
puts one over a model that is in memory."""

import copy
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


def pipeline_over(model: Any, tokenizer: Any, task: str, *, device: torch.device) -> Any:
    """The pipeline of `task` over `model`, which it leaves where it is.

    It has a tokenizer of its own, in which it may set languages while another pipeline has set others.
    """
    register()
    return pipeline(library_name(task), model=model, tokenizer=copy.deepcopy(tokenizer), device=device)  # type: ignore[call-overload]  # as above
