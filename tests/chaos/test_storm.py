"""The promise under a storm: an acknowledged job reaches exactly one end, with one result, whatever dies."""

import random
from pathlib import Path

import pytest

from tests.chaos.nursery import Nursery
from tests.chaos.storm import THAWED, Plan, weather


@pytest.mark.timeout(300)
def test_no_acknowledged_job_is_lost_and_none_ends_twice(nursery: Nursery, tmp_path: Path) -> None:
    """About a minute: workers and the server are killed, workers sleep longer than their lease, tickets go astray.

    The audit holds every acknowledgement, every attempt's answer, every record and every event stream against each
    other. A run is repeated with its seed: `python -m tests.chaos.storm --seed N …`.
    """
    plan = Plan(seed=random.SystemRandom().randrange(10**6), worker_kills=40, server_kills=8, zombies=12)
    outcome = weather(plan, nursery, tmp_path)
    print(f"seed {plan.seed}\n{outcome.table()}")  # noqa: T201  # pytest shows it when the test fails
    assert outcome.done["kill a worker"] >= 30
    assert outcome.done["kill the server"] == plan.server_kills
    assert outcome.done["freeze a worker"] == plan.zombies
    assert outcome.done[THAWED] >= 1
    assert outcome.tally.jobs >= 300, "the storm was so strong that hardly anything was done"
