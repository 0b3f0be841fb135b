"""What OpenAI's clients are told of each event of a training."""

from typing import Any

import pytest

from api.fine_tuning.checkpoint_view import checkpoints_of
from api.fine_tuning.event_view import cursor_of, event_view
from tandem.adapters import AdapterManifest
from tandem.events import FIRST
from tandem.job import Job, JobEvent
from tandem.specs import LoraMethod
from tests.unit.webhooks.jobs import ended_job

ID = "1800000000123-4"


def training(**changes: Any) -> Job:
    progress = {"step": 3, "total_steps": 10}
    return ended_job("job_1", kind="finetune", progress=progress, result={"adapter": "ft:m:o:s:1"}, **changes)


@pytest.mark.parametrize(
    ("name", "data", "level", "message"),
    [
        ("metrics", {"step": 3, "loss": 0.734}, "info", "Step 3/10: training loss=0.73"),
        ("evaluation", {"step": 10, "loss": 1.0}, "info", "Step 10/10: validation loss=1.00"),
        ("warning", {"message": "beware"}, "warn", "beware"),
        ("checkpoint", {"step": 5}, "info", "Checkpoint kept at step 5"),
        ("published_checkpoint", {"step": 5, "adapter": "ft:x"}, "info", "Checkpoint created at step 5: ft:x"),
        ("resumed", {"step": 5}, "info", "Training goes on after step 5"),
        ("data", {"examples": 7, "steps": 10}, "info", "The files were read: 7 training examples, 10 steps"),
        (
            "retry",
            {"failure": {"message": "no room"}, "at": 1.0},
            "warn",
            "The attempt failed and is repeated: no room",
        ),
        ("state", {"state": "running", "attempt": 1}, "info", "Fine-tuning job started"),
        ("state", {"state": "queued", "attempt": 1}, "info", "The job waits in its queue again"),
        ("state", {"state": "running", "attempt": 2}, "info", "Fine-tuning job started again (attempt 2)"),
        ("state", {"state": "succeeded", "attempt": 2}, "info", "New fine-tuned model created: ft:m:o:s:1"),
        ("state", {"state": "expired", "attempt": 2}, "error", "The job was not finished by its deadline"),
    ],
)
def test_an_event_is_a_message(name: str, data: dict[str, Any], level: str, message: str) -> None:
    shown = event_view(training(), JobEvent(ID, name, data))
    assert shown is not None
    assert (shown.level, shown.message) == (level, message)
    assert shown.type == ("metrics" if name in ("metrics", "evaluation") else "message")
    assert (shown.created_at, cursor_of(shown.id)) == (1_800_000_000, ID)


@pytest.mark.parametrize("name", ["progress", "tokens", "something new"])
def test_what_says_nothing_to_these_clients_is_left_out(name: str) -> None:
    assert event_view(training(), JobEvent(ID, name, {})) is None


def test_the_first_event_has_the_time_of_the_job() -> None:
    job = training()
    shown = event_view(job, JobEvent(FIRST, "state", {"state": "queued", "attempt": 0}))
    assert shown is not None
    assert (shown.created_at, shown.message) == (int(job.created_at), "Created fine-tuning job: job_1")


def test_figures_have_openais_names_and_ours_where_it_has_none() -> None:
    data = {"step": 3, "loss": 0.5, "accuracy": 0.75, "grad_norm": 2.0}
    shown = event_view(training(), JobEvent(ID, "evaluation", data))
    assert shown is not None
    assert shown.data == {
        "step": 3,
        "valid_loss": 0.5,
        "valid_mean_token_accuracy": 0.75,
        "grad_norm": 2.0,
        "total_steps": 10,
    }


@pytest.mark.parametrize(
    "shown", ["", "ftevent-", "ftevent-1", "ftevent-1-x", "1800000000123-4", "ftevent-0-0", f"ftevent-{2**64}-0"]
)
def test_what_was_never_shown_is_no_place_in_the_stream(shown: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - it says no more than what it was given
        cursor_of(shown)


def test_a_checkpoint_of_a_step_that_was_not_logged_has_the_figures_before() -> None:
    def adapter(name: str, job_id: str = "job_1") -> AdapterManifest:
        return AdapterManifest(
            id=name,
            owner="o",
            base="m",
            base_revision=None,
            task="text-generation",
            method=LoraMethod(),
            job_id=job_id,
            files={},
            created_at=1.0,
        )

    events = [
        JobEvent("4-0", "metrics", {"step": 8, "loss": 0.1}),
        JobEvent("3-0", "metrics", {"step": 4, "loss": 0.5}),
        JobEvent("2-0", "evaluation", {"step": 0, "loss": 3.0}),
    ]
    adapters = [adapter("ft:m:o:s:1"), adapter("ft:m:o:s:1:ckpt-step-5"), adapter("ft:a:o:s:2:ckpt-step-5", "job_2")]
    (checkpoint,) = checkpoints_of(training(), adapters, events)
    assert (checkpoint.step_number, checkpoint.fine_tuned_model_checkpoint) == (5, "ft:m:o:s:1:ckpt-step-5")
    assert (checkpoint.metrics.step, checkpoint.metrics.train_loss, checkpoint.metrics.full_valid_loss) == (
        5,
        0.5,
        3.0,
    )
