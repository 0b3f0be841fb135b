"""What the commands print of a job."""

import pytest

from tandem.cli.charts import loss_chart, running_mean
from tandem.cli.failures import failure_line
from tandem.cli.tables import duration_text, event_line, progress_text
from tandem.client import JobEvent
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
    state = {"state": "running", "attempt": 2}
    assert event_line(JobEvent("0-0", "state", state)).plain.endswith("state      running  attempt 2")


def test_a_curve_needs_two_points_and_names_its_lines() -> None:
    assert loss_chart([(1, 3.0)], [(0, 3.0)]) is None
    chart = loss_chart([(1, 3.0), (2, 1.0)], [(0, 3.2), (2, 1.1)])
    assert chart is not None
    lines = chart.plain.splitlines()
    assert "training" in lines[0]
    assert "held out" in lines[0]
    assert sum("●" in line for line in lines[1:]) == 2


def test_a_running_mean_looks_back_only() -> None:
    assert running_mean([(1, 4.0), (2, 2.0), (3, 0.0)], 2) == [(1, 4.0), (2, 3.0), (3, 1.0)]


def test_an_error_is_one_line_and_a_fix_follows_where_the_message_has_none() -> None:
    assert failure_line(UnknownModel("no model 'x'")).plain == (
        "error [model_not_found] no model 'x' — `tandem models` lists what there is"
    )
    assert failure_line(PromptTooLong("3000 tokens; 2048 fit")).plain == (
        "error [context_length_exceeded] 3000 tokens; 2048 fit"
    )
