"""Each tiny model is built and loaded once a session, and never changed by a test."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import build
from worker.pipeline_loading import load_pipeline


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread a sum: a tiny model gains nothing by more, and two would wait on each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny model by its name."""
    return cache(lambda name: build(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder: Callable[[str], Path]) -> Callable[[str, str], Any]:
    """Gives the pipeline of (task, name of a tiny model), as a worker loads it."""
    cpu = torch.device("cpu")
    return cache(
        lambda task, name: load_pipeline(task, tiny_folder(name), revision=None, dtype=torch.float32, device=cpu)
    )
