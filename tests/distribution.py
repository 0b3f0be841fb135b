"""How `make test` shares the tests among processes: which of them one process takes together, and which come first.

A unit of work is one module, unless several modules share something that is costly to start: a whole service, the
nursery of the chaos tests, an API, tiny models. The chaos tests are one unit also because they watch the clock: they
run beside one other process's tests, and never beside each other. pytest-xdist's own `--dist` modes would need a mark
on each of these tests, and write it into the test's name.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

TOGETHER = (
    "tests/chaos/",
    "tests/integration/test_",
    "tests/integration/tasks/",
    "tests/integration/api/",
    "tests/fundamentals/test_encoder_training",
    "tests/model/",
    "tests/golden/",
    "tests/unit/pipelines/",
    "tests/unit/tiny_models/",
)
"""Beginnings of the paths of modules that make one unit. The longest unit comes first: what is left for the end is
short, and no process waits long for another."""


def unit_of(test: str) -> str:
    """The unit of work that a test belongs to, by its node id."""
    module = test.partition("::")[0]
    return next((beginning for beginning in TOGETHER if module.startswith(beginning)), module)


def place_of(unit: str) -> int:
    """Units with a lower place are begun first; those that have the same, in the order of collection."""
    return TOGETHER.index(unit) if unit in TOGETHER else len(TOGETHER)


class UnitScheduling(LoadScopeScheduling):
    """Gives a process one unit after another."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        # Not by how many tests a unit has: that says nothing of how long they take.
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=place_of), last=False)
        super()._assign_work_unit(node)
