"""A whole worker that stands still: it ends itself, and its job is handed out again."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tandem.job import JobState
from tandem.services import Services
from tandem.settings import Settings
from tandem.specs import FeatureExtractionSpec
from tandem.tickets import lane
from worker.stall import STALLED_EXIT

pytestmark = pytest.mark.timeout(300)

MODEL = "all-minilm-l6-v2"
LEASE_SECONDS, STALL_SECONDS = 2.0, 3.0
PATIENCE_SECONDS = 120.0
"""For a worker's start and the loading of its model, on two busy cores."""
POLL_SECONDS = 0.1


@pytest.fixture
def settings(valkey_url: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}/artifacts", lease_seconds=LEASE_SECONDS)


@contextmanager
def hanging_worker(settings: Settings) -> Iterator["subprocess.Popen[str]"]:
    environment = {
        **os.environ,
        "TANDEM_REDIS_URL": settings.redis_url,
        "TANDEM_ARTIFACTS_URL": settings.artifacts_url,
        "TANDEM_LEASE_SECONDS": str(LEASE_SECONDS),
        "TANDEM_STALL_SECONDS": str(STALL_SECONDS),
        "TANDEM_ROLES": "inference",
    }
    command = (sys.executable, "-m", "tests.chaos.hanging_worker")
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(POLL_SECONDS)


def test_a_worker_that_stands_still_ends_and_its_job_goes_to_the_next(settings: Settings) -> None:
    """It gives up its leases and ends with a status that makes any supervisor start it again; the log has the
    stacks. The job lost one worker, and is charged one crash. The next worker is the test."""
    services = Services.connect(settings)
    spec = FeatureExtractionSpec(task="feature-extraction", model=MODEL, inputs="a red apple")
    job_id = services.submission.submit(spec, owner="me").job.id
    with hanging_worker(settings) as hanging:
        wait_until(lambda: services.jobs.get(job_id).state is JobState.RUNNING, "the job runs")
        _, errors = hanging.communicate(timeout=PATIENCE_SECONDS)
    assert hanging.returncode == STALLED_EXIT
    assert "in hang" in errors, "the stacks of all threads"
    wait_until(lambda: services.jobs.reap() == (1, 0), "the lease is over")
    claim = services.jobs.claim(lane("inference", MODEL), "the next")
    assert claim is not None
    assert (claim.job.id, claim.fence, claim.job.crashes) == (job_id, 2, 1)
    services.jobs.close()
