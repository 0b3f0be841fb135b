"""The bench of a worker's parts, for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.worker.worker_bench import Bench, bench_over


@pytest.fixture
def bench(valkey_url: str, tmp_path: Path) -> Iterator[Bench]:
    yield from bench_over(valkey_url, tmp_path)
