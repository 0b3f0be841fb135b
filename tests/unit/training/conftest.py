"""One compute thread for models that are far too small for two, and tiny models' folders."""

from collections.abc import Iterator

import pytest
import torch

from tests.tiny_models.fixtures import tiny_folder

__all__ = ["tiny_folder"]


@pytest.fixture(autouse=True, scope="package")
def _one_compute_thread() -> Iterator[None]:
    """OpenMP's threads spin while they wait for each other, which beside any other process takes most of a step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
