"""The audit sees each way in which the promise could be broken: without this, a quiet storm would prove nothing."""

import json

import pytest

from tandem.errors import InvalidRequest
from tandem.job import Failure, JobState
from tests.chaos.ledger import Ledger, Tally
from tests.chaos.stage import LANE, Stage


def end_by_hand(stage: Stage, state: JobState = JobState.SUCCEEDED, **end: object) -> str:
    """A job that ends without a worker, so that the ledger knows of no attempt."""
    job_id = stage.submit("by hand")
    claim = stage.jobs.claim(LANE, "nobody")
    assert claim is not None
    stage.jobs.finish(job_id, claim.fence, state, **end)  # type: ignore[arg-type]  # a test's end
    return job_id


def test_what_is_in_order_is_counted(stage: Stage) -> None:
    stage.submit("good")
    stage.submit("bad", fails=True)
    stage.worker()
    stage.wait_ended()
    assert stage.audit() == Tally(
        acknowledged=2, unanswered=0, jobs=2, ended={"succeeded": 1, "failed": 1}, attempts=2, refused=0, crashes=0
    )


def test_an_acknowledged_job_that_is_not_there(stage: Stage) -> None:
    ledger = Ledger(stage.folder)
    ledger.acknowledged("a key", "job_unknown")
    ledger.close()
    with pytest.raises(AssertionError, match=r"job_unknown .* is lost"):
        stage.audit()


def test_two_jobs_of_one_key(stage: Stage) -> None:
    spec = {"key": "same", "work_seconds": 0.0}
    for _ in range(2):
        stage.jobs.submit(kind="inference", model="light", lane=LANE, owner="o", spec=spec)
    with pytest.raises(AssertionError, match="same made 2 jobs"):
        stage.audit()


def test_a_job_that_has_not_ended(stage: Stage) -> None:
    stage.submit("waiting")
    with pytest.raises(AssertionError, match="is queued"):
        stage.audit()


def test_a_result_that_its_attempt_did_not_produce(stage: Stage) -> None:
    end_by_hand(stage, result={"attempt": 7})
    with pytest.raises(AssertionError, match="its attempt produced None"):
        stage.audit()


def test_a_failure_that_was_not_asked_for(stage: Stage) -> None:
    end_by_hand(stage, JobState.FAILED, failure=Failure.of(InvalidRequest()))
    with pytest.raises(AssertionError, match="failed: "):
        stage.audit()


def test_a_cancellation_that_nobody_asked_for(stage: Stage) -> None:
    end_by_hand(stage, JobState.CANCELLED)
    with pytest.raises(AssertionError, match="which nobody asked for"):
        stage.audit()


def test_a_stream_with_a_second_end(stage: Stage) -> None:
    job_id = stage.submit("good")
    stage.worker()
    stage.wait_ended()
    end = json.dumps({"state": "succeeded", "attempt": 1})
    stage.jobs.redis.xadd(f"tandem:events:{job_id}", {"type": "state", "data": end})
    with pytest.raises(AssertionError, match="its stream ends 2 times"):
        stage.audit()


def test_a_line_that_its_process_could_not_finish_counts_for_nothing(stage: Stage) -> None:
    (stage.folder / "ledger-1.jsonl").write_text('{"entry": "acknowledged", "key": "a", "jo')
    assert stage.books().acknowledged == {}
