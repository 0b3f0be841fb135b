"""Fixtures of the groups of tests that run tiny models: their conftest imports them."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.tiny_models import build


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread a sum: a tiny model gains nothing by more, and two would wait on each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny model by its name, built once a session."""
    return cache(lambda name: build(name, tmp_path_factory.mktemp(name)))
