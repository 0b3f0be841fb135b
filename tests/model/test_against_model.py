"""The queue against its specification: random runs of both must agree in everything after every step."""

import os

from tests.model.queue_under_test import QueueUnderTest
from tests.model.random_runs import agree

RUNS = 300
"""In `make test`, always the same ones: about 25 s on two busy cores."""
MORE = "TANDEM_MODEL_RUNS"
"""Set to a number, it asks for so many runs, and for other ones each time."""


def test_the_queue_does_what_the_model_says(queue: QueueUnderTest) -> None:
    more = os.environ.get(MORE)
    agree(queue, int(more) if more else RUNS, derandomize=more is None)
