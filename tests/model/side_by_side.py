"""The real queue and the model, moved side by side and compared after every step."""

from random import Random
from typing import ClassVar

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tandem.errors import WorkerLost
from tandem.job import Failure
from tests.model import invariants
from tests.model.action import actions_of, draw
from tests.model.clocked_library import Contents
from tests.model.job_model import JobModel
from tests.model.life_model import CRASHES_ALLOWED, DEAD_KEEP_MS, KEEP_MS, LEASE_MS
from tests.model.queue_under_test import START, QueueUnderTest
from tests.model.ready_model import AGEING_MS, ModelJob
from tests.model.stored_form import comparable, expected
from tests.model.workers_model import PROBATION_MS

LANES = ("lane.1", "lane.2")
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}
NOT_RUNNING = ("queued", "succeeded", "failed", "cancelled", "expired")
ENDS = ("succeeded", "succeeded", "failed", "dead", "dead", "cancelled", "expired")
"""`dead`: failed, and a dead letter."""
PASSING = Failure(type="Busy", code="busy", message="later", retryable=True)
LOST = Failure.of(WorkerLost(f"{CRASHES_ALLOWED} workers died or fell silent while they ran this job"))

BUSY_LANES = (*LANES, *LANES[:1] * 3)
WORKERS = ("w1", "w1", "w1", "w2", "w2", "w3")
WHICH = range(7)
"""Which of the jobs in question, the youngest first."""
FENCE_ERRORS = (0, 0, 0, 0, -1, 1)
"""What is added to the right fence: attempts that were superseded, and one that never was."""
STEPS_MS = (
    1,
    900,
    1000,
    1000,
    4000,
    4000,
    4000,
    LEASE_MS,
    LEASE_MS,
    PROBATION_MS,
    PROBATION_MS,
    AGEING_MS + 1,
    KEEP_MS,
    DEAD_KEEP_MS,
)


class SideBySide(RuleBasedStateMachine):
    """One run. Set `queue` on a subclass."""

    queue: ClassVar[QueueUnderTest]

    def __init__(self) -> None:
        super().__init__()
        self.queue.reset()
        self.store = self.queue.store
        self.model = JobModel(START)
        self.seen: Contents = {}
        self.actions = actions_of(type(self))

    @rule(seed=st.integers(0, 2**64 - 1))
    def step(self, seed: int) -> None:
        name, arguments = draw(self, self.actions, Random(seed))
        note(f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
        getattr(self, name)(**arguments)

    @invariant()
    def the_queue_is_as_the_model_says(self) -> None:
        contents = self.queue.server.contents()
        invariants.check_change(self.seen, contents)
        invariants.check_places(contents)
        invariants.check_nothing_forgotten_is_left(contents)
        self.seen = contents
        found, wanted = comparable(contents), expected(self.model)
        if found != wanted:
            keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
            raise AssertionError(
                "\n".join(f"{key}: it is {found.get(key)}, the model says {wanted.get(key)}" for key in keys)
            )

    def jobs(self, *states: str) -> list[ModelJob]:
        """The youngest first; of all states if none is named."""
        return [job for job in reversed(self.model.jobs.values()) if not states or job.state in states]

    def pick(self, number: int, *states: str) -> ModelJob:
        found = self.jobs(*states)
        return found[number % len(found)]

    def pass_time(self, milliseconds: int) -> None:
        self.queue.server.move_clock(milliseconds)
        self.model.pass_time(milliseconds)

    def move_server(self, milliseconds: int) -> None:
        """The server's clock alone: by the process's own it has waited for no time at all."""
        if milliseconds:
            self.queue.clock.lag_ms += milliseconds
            self.pass_time(milliseconds)
