"""One clocked queue for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.model.queue_under_test import QueueUnderTest, queue_under_test


@pytest.fixture(scope="module")
def queue() -> Iterator[QueueUnderTest]:
    with queue_under_test() as queue:
        yield queue
