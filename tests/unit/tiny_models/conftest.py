"""Each tiny model is built and loaded once a session, and never changed by a test."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline

from tests.tiny_models.fixtures import one_thread, tiny_folder

__all__ = ["one_thread", "tiny_folder", "tiny_pipeline"]


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder: Callable[[str], Path]) -> Callable[[str, str], Any]:
    """Gives the library's pipeline of (task, name of a tiny model), on the CPU."""
    return cache(lambda task, name: pipeline(task, model=str(tiny_folder(name)), device="cpu"))
