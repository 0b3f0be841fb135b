"""Each tiny model is built and loaded once a session, and never changed by a test."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models.fixtures import one_thread, tiny_folder
from worker.pipeline_loading import load_pipeline

__all__ = ["one_thread", "tiny_folder", "tiny_pipeline"]


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder: Callable[[str], Path]) -> Callable[[str, str], Any]:
    """Gives the pipeline of (task, name of a tiny model), as a worker loads it."""
    cpu = torch.device("cpu")
    return cache(
        lambda task, name: load_pipeline(task, tiny_folder(name), revision=None, dtype=torch.float32, device=cpu)
    )
