"""What the commands print of a job."""

import pytest

from tandem.cli.charts import Point, extend, loss_chart, running_mean
from tandem.cli.failures import failure_line
from tandem.cli.tables import (
    attempts_text,
    clock_text,
    data_text,
    duration_text,
    event_line,
    progress_text,
    state_text,
)
from tandem.client import JobEvent, JobHandle, Tandem
from tandem.errors import PromptTooLong, UnknownModel


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-0.2, "0.0 s"),
        (0.44, "0.4 s"),
        (12.3, "12 s"),
        (119, "119 s"),
        (180, "3 min"),
        (7200, "2 h"),
        (432_000, "5 d"),
    ],
)
def test_durations_are_for_people(seconds: float, shown: str) -> None:
    assert duration_text(seconds) == shown


def test_progress_is_of_steps_or_of_inputs() -> None:
    assert progress_text({"step": 3, "total_steps": 10, "epoch": 0.1}) == "3/10"
    assert progress_text({"done": 0, "total": 7}) == "0/7"
    assert progress_text(None) == ""


def test_an_event_is_one_line() -> None:
    metrics = {"step": 4, "loss": 1.23456, "tokens_per_second": 180.4}
    assert event_line(JobEvent("0-0", "metrics", metrics)).plain.endswith(
        "metrics    step 4  loss 1.235  180 tokens/s"
    )
    progress = {"step": 3, "total_steps": 10, "epoch": 0.1, "eta_seconds": 180.0}
    assert event_line(JobEvent("0-0", "progress", progress)).plain.endswith("progress   3/10  3 min left")
    state = {"state": "running", "attempt": 2}
    assert event_line(JobEvent("0-0", "state", state)).plain.endswith("state      running  attempt 2")


def test_a_report_on_training_files_says_what_is_odd() -> None:
    """Nothing of what is as it should be."""
    counts = {"truncated_rows": 0, "dropped_rows": 0, "duplicate_rows": 0, "broken_rows": 0}
    training = {"rows": 120, "tokens": 4000, **counts, "broken_rows": 3, "duplicate_rows": 2}
    report = {"training": training, "validation": None, "leaked_rows": 0, "steps": 15}
    assert data_text(report) == "training: 120 rows, 4000 tokens (3 broken, 2 twice); 15 steps"
    held_out = {"rows": 10, "tokens": 300, **counts}
    assert data_text({**report, "validation": held_out, "leaked_rows": 1}).endswith(
        "; validation: 10 rows, 300 tokens; 1 validation rows are training rows too; 15 steps"
    )
    assert event_line(JobEvent("0-0", "data", report)).plain.endswith("15 steps")


def test_the_first_event_has_the_time_that_it_names() -> None:
    """Symptom: a job's log began in 1970. Cause: its first event is in no stream, and its id is no time."""
    queued = JobEvent("0-1", "state", {"state": "queued", "attempt": 0, "at": 1_700_000_000.5})
    assert event_line(queued).plain.split() == [clock_text(1_700_000_000.5), "state", "queued"]


def test_a_retry_says_why_and_when() -> None:
    failure = {"code": "out_of_memory", "message": "no room"}
    retry = JobEvent("1700000000000-0", "retry", {"failure": failure, "at": 1_700_000_010.0})
    assert event_line(retry).plain.endswith(f"again at {clock_text(1_700_000_010.0)} after out_of_memory: no room")


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        ({"state": "queued"}, "queued"),
        ({"state": "queued", "paused": True, "not_before": 160.0}, "queued, paused"),
        ({"state": "queued", "not_before": 160.0}, "queued, in 60 s"),
        ({"state": "queued", "not_before": 90.0}, "queued"),
        ({"state": "running", "paused": True}, "running, pausing"),
        ({"state": "running", "paused": True, "cancel_requested": True}, "running, stopping"),
        ({"state": "failed"}, "failed"),
        ({"state": "failed", "dead": True}, "failed, dead"),
        ({"state": "failed", "dead": True, "requeued_as": "job_2"}, "failed, requeued"),
        ({"state": "expired"}, "expired"),
    ],
)
def test_a_state_says_what_holds_the_job_back(client: Tandem, record: dict[str, object], shown: str) -> None:
    assert state_text(job(client, **record), now=100.0) == shown


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        ({"attempt": 1}, "1"),
        ({"attempt": 2, "retries": 1}, "2 (1 retried)"),
        ({"attempt": 5, "retries": 1, "crashes": 2}, "5 (1 retried, 2 crashed)"),
    ],
)
def test_attempts_say_why_there_were_several(client: Tandem, record: dict[str, object], shown: str) -> None:
    assert attempts_text(job(client, **record)) == shown


def job(client: Tandem, **record: object) -> JobHandle:
    named = {"id": "job_1", "kind": "inference", "task": "fill-mask", "model": "m", "created_at": 1.0}
    return JobHandle.read({"state": "queued", "attempt": 0, **named, **record}, client)


def test_a_curve_needs_two_points_and_names_its_lines() -> None:
    assert loss_chart([(1, 3.0)], [(0, 3.0)]) is None
    chart = loss_chart([(1, 3.0), (2, 1.0)], [(0, 3.2), (2, 1.1)])
    assert chart is not None
    lines = chart.plain.splitlines()
    assert "training" in lines[0]
    assert "held out" in lines[0]
    assert sum("●" in line for line in lines[1:]) == 2


def test_a_curve_goes_on_where_a_later_attempt_takes_it_up() -> None:
    """From its checkpoint, or from the beginning: what the lost attempt had after that is made anew."""
    curve: list[Point] = []
    for step in (1, 2, 3, 4):
        extend(curve, (step, 1.0))
    extend(curve, (3, 0.5))
    assert curve == [(1, 1.0), (2, 1.0), (3, 0.5)]
    extend(curve, (1, 0.9))
    assert curve == [(1, 0.9)]


def test_a_running_mean_looks_back_only() -> None:
    assert running_mean([(1, 4.0), (2, 2.0), (3, 0.0)], 2) == [(1, 4.0), (2, 3.0), (3, 1.0)]


def test_an_error_is_one_line_and_a_fix_follows_where_the_message_has_none() -> None:
    assert failure_line(UnknownModel("no model 'x'")).plain == (
        "error [model_not_found] no model 'x' — `tandem models` lists what there is"
    )
    assert failure_line(PromptTooLong("3000 tokens; 2048 fit")).plain == (
        "error [context_length_exceeded] 3000 tokens; 2048 fit"
    )
