"""Lets Hypothesis drive the queue and its model through many runs."""

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import QueueMachine
from tests.model.queue_under_test import QueueUnderTest

STEPS = 50
"""Of one run."""


def agree(queue: QueueUnderTest, runs: int, *, derandomize: bool = True, must_pass: bool = True) -> None:
    """Raises AssertionError at the first run in which queue and model differ, shortened if it `must_pass`."""

    class Machine(QueueMachine):
        pass

    Machine.queue = queue
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=STEPS,
            derandomize=derandomize,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink) if must_pass else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
