"""The real queue under the test's clock: a JobStore on a Valkey server of its own, with the clocked library."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from tandem.artifacts import ArtifactStore
from tandem.errors import Superseded
from tandem.job_store import JobStore
from tandem.settings import Settings
from tests.model import life_model
from tests.model.clocked_library import SWEEP_LIMIT, Clock, ClockedServer
from tests.model.ready_model import AGEING_MS
from tests.valkey_server import ValkeyServer

START = 1_800_000_000_000
"""Milliseconds since the epoch; when every run begins."""


class Ids:
    """Names jobs in the order of submission, so that a run can be repeated; the next one can be foretold."""

    def __init__(self) -> None:
        self.last = 0

    def upcoming(self) -> str:
        return f"job_{self.last + 1:04d}"

    def take(self) -> str:
        name = self.upcoming()
        self.last += 1
        return name

    def repeat(self) -> str:
        """Name the next job as the last one was."""
        self.last -= 1
        return self.upcoming()


class QueueUnderTest:
    def __init__(self, store: JobStore, clock: Clock, ids: Ids) -> None:
        self.store = store
        self.clock = clock
        self.ids = ids
        self.server = ClockedServer(store.redis, clock)
        self.server.load()

    def reset(self) -> None:
        """An empty queue at the start of time, whose store knows the clock."""
        self.server.reset(START)
        self.ids.last = 0
        self.store.renew("nobody", {"job_of_nobody": 1})


@contextmanager
def queue_under_test() -> Iterator[QueueUnderTest]:
    """Everything that the store asks of the outside (clock, ids) is the test's; its limits are the model's."""
    clock, ids = Clock(0), Ids()
    with (
        ValkeyServer() as server,
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("tandem.job_upkeep.time", SimpleNamespace(monotonic=clock.monotonic))
        patch.setattr("tandem.job_store._new_id", ids.take)
        patch.setattr("tandem.job_upkeep.SWEEP_LIMIT", SWEEP_LIMIT)
        patch.setattr("tandem.job_upkeep.CRASHES_IN_ALL", life_model.CRASHES_IN_ALL)
        settings = Settings(
            redis_url=f"unix://:{server.password}@{server.socket}?db=0",
            artifacts_url=f"file://{folder}",
            lease_seconds=life_model.LEASE_MS / 1000,
            result_seconds=life_model.KEEP_MS / 1000,
            dead_letter_seconds=life_model.DEAD_KEEP_MS / 1000,
            idempotency_seconds=life_model.IDEMPOTENCY_MS / 1000,
            crashes_allowed=life_model.CRASHES_ALLOWED,
            ageing_seconds=AGEING_MS / 1000,
            queue_limit=life_model.QUEUE_LIMIT,
        )
        store = JobStore(settings, ArtifactStore(settings.artifacts_url))
        try:
            yield QueueUnderTest(store, clock, ids)
        finally:
            store.close()


def is_accepted(write: Callable[[], None]) -> bool:
    """Whether an attempt's write was taken, and not answered by Superseded."""
    try:
        write()
    except Superseded:
        return False
    return True
