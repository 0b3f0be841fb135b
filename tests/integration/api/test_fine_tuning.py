"""OpenAI's fine-tuning jobs through the unmodified client, which checks the shape of every answer.

A stand-in plays the worker; tests/integration/test_fine_tuning_service.py trains for real.
"""

import json
import time
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tandem.adapters import AdapterManifest, adapter_id
from tandem.errors import OutOfMemory
from tandem.event_log import CHUNK
from tandem.job_store import Claim
from tandem.services import Services
from tandem.specs import LoraMethod
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker

ROW = {"messages": [{"role": "user", "content": "Say ahoy."}, {"role": "assistant", "content": "ahoy"}]}
PAIR = {
    "input": {"messages": [{"role": "user", "content": "Greet me."}]},
    "preferred_output": [{"role": "assistant", "content": "Ahoy!"}],
    "non_preferred_output": [{"role": "assistant", "content": "No."}],
}


def uploaded(sdk: openai.OpenAI, *rows: object) -> str:
    content = "\n".join(json.dumps(row) for row in rows).encode()
    return sdk.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


@pytest.fixture
def training_file(sdk: openai.OpenAI) -> str:
    return uploaded(sdk, ROW)


def spec_of(client: httpx.Client, job: FineTuningJob) -> dict[str, Any]:
    """What our own API says that was asked for."""
    spec: dict[str, Any] = client.get(f"/v1/jobs/{job.id}").json()["spec"]
    return spec


def ours(job: FineTuningJob) -> dict[str, Any]:
    """What is ours in a job."""
    assert job.model_extra is not None
    found: dict[str, Any] = job.model_extra["tandem"]
    return found


def refused(sdk: openai.OpenAI, **request: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.fine_tuning.jobs.create(**request)
    return caught.value


# What is asked for


def test_a_job_is_made_with_everything_left_to_the_service(
    sdk: openai.OpenAI, client: httpx.Client, training_file: str
) -> None:
    job = sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file=training_file)
    assert (job.status, job.model, job.training_file) == ("queued", CHAT_MODEL, training_file)
    assert (job.fine_tuned_model, job.finished_at, job.estimated_finish, job.error) == (None, None, None, None)
    assert (job.result_files, job.trained_tokens, job.organization_id) == ([], None, "default")
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.hyperparameters is not None
    assert job.method.supervised.hyperparameters.to_dict() == job.hyperparameters.to_dict()
    assert job.hyperparameters.to_dict() == {"n_epochs": 1, "batch_size": 8, "learning_rate_multiplier": 1.0}
    assert spec_of(client, job)["method"]["type"] == "lora"


def test_what_is_given_reaches_the_job(sdk: openai.OpenAI, client: httpx.Client, training_file: str) -> None:
    # The last one is ours, which the client's types do not know.
    hyperparameters: Any = {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 0.5, "max_steps": 4}
    job = sdk.fine_tuning.jobs.create(
        model=CHAT_MODEL,
        training_file=training_file,
        validation_file=training_file,
        suffix="pirate",
        seed=7,
        metadata={"team": "sea"},
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        extra_body={"lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj"], "use_rslora": True}},
        extra_headers={"x-tandem-priority": "low"},
    )
    assert (job.seed, job.metadata, job.validation_file) == (7, {"team": "sea"}, training_file)
    assert job.hyperparameters.to_dict() == {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 0.5}
    spec = spec_of(client, job)
    assert (spec["suffix"], spec["priority"]) == ("pirate", "low")
    assert spec["method"].items() >= {"r": 4, "alpha": 8.0, "target_modules": ["q_proj"], "use_rslora": True}.items()
    trained = spec["hyperparameters"]
    assert (trained["epochs"], trained["batch_size"], trained["seed"], trained["max_steps"]) == (3.0, 2, 7, 4)
    assert trained["learning_rate"] == pytest.approx(1e-4)


def test_auto_is_what_leaving_out_is(sdk: openai.OpenAI, training_file: str) -> None:
    auto = sdk.fine_tuning.jobs.create(
        model=CHAT_MODEL,
        training_file=training_file,
        hyperparameters={"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"},
    )
    assert auto.hyperparameters.to_dict() == {"n_epochs": 1, "batch_size": 8, "learning_rate_multiplier": 1.0}


def test_another_kind_of_adapter_has_a_rate_at_which_it_learns(
    sdk: openai.OpenAI, client: httpx.Client, training_file: str
) -> None:
    job = sdk.fine_tuning.jobs.create(
        model=CHAT_MODEL, training_file=training_file, extra_body={"method_options": {"type": "ia3"}}
    )
    assert job.hyperparameters.learning_rate_multiplier == 10.0
    spec = spec_of(client, job)
    assert spec["method"]["type"] == "ia3"
    assert spec["hyperparameters"]["learning_rate"] == pytest.approx(2e-3)


def test_preferences_are_learned_by_dpo(sdk: openai.OpenAI, client: httpx.Client) -> None:
    job = sdk.fine_tuning.jobs.create(
        model=CHAT_MODEL,
        training_file=uploaded(sdk, PAIR),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": 2}}},
    )
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert (job.method.type, job.method.dpo.hyperparameters.beta) == ("dpo", 0.3)
    assert spec_of(client, job)["objective"] == {"type": "dpo", "beta": 0.3}


def test_an_integration_is_not_run_and_a_warning_says_so(sdk: openai.OpenAI, training_file: str) -> None:
    job = sdk.fine_tuning.jobs.create(
        model=CHAT_MODEL,
        training_file=training_file,
        integrations=[{"type": "wandb", "wandb": {"project": "sea"}}],
    )
    warning, created = sdk.fine_tuning.jobs.list_events(job.id).data
    assert (warning.level, warning.type) == ("warn", "message")
    assert "`integrations` are not run" in warning.message
    assert created.message == f"Created fine-tuning job: {job.id}"


def test_a_repeated_request_with_a_key_is_the_same_job(sdk: openai.OpenAI, training_file: str) -> None:
    jobs = [
        sdk.fine_tuning.jobs.create(
            model=CHAT_MODEL, training_file=training_file, extra_headers={"Idempotency-Key": "train-once"}
        )
        for _ in range(2)
    ]
    assert jobs[0].id == jobs[1].id


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"suffix": "Not This One"}, "suffix", "match"),
        ({"seed": -1}, "seed", "0"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "greater than 0"),
        ({"hyperparameters": {"n_epochs": 101}}, "hyperparameters.n_epochs", "100"),
        ({"hyperparameters": {"n_epochs": 10**400}}, "hyperparameters.n_epochs", "valid number"),
        ({"hyperparameters": {"n_epochs": 1.5}}, "hyperparameters.n_epochs", "integer"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 5000}}}},
            "method.supervised.hyperparameters.batch_size",
            "1024",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_layers": 3}}}},
            "method.supervised.hyperparameters.n_layers",
            "unsupported parameter",
        ),
        ({"method": {"type": "reinforcement"}}, "method.type", "'supervised' or 'dpo'"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method", "`dpo` does not belong"),
        ({"hyperparameters": {"epochs": 2}}, "hyperparameters", "`n_epochs` here"),
        ({"extra_body": {"lora": {"r": 9999}}}, "lora.r", "256"),
        ({"extra_body": {"method_options": {"type": "none"}}}, "method_options.type", "must be one of"),
        ({"extra_body": {"lora": {}, "method_options": {"type": "ia3"}}}, None, "give one"),
        ({"extra_body": {"n": 2}}, "n", "unsupported parameter"),
        ({"extra_body": {"task": "singing"}}, "task", "text-generation"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_the_name_that_it_was_given_by(
    sdk: openai.OpenAI, training_file: str, changes: dict[str, Any], param: str | None, said: str
) -> None:
    error = refused(sdk, model=CHAT_MODEL, training_file=training_file, **changes)
    assert error.param == param
    assert said in error.message
    assert sdk.fine_tuning.jobs.list().data == []


def test_a_faulty_line_is_named_before_anything_is_queued(sdk: openai.OpenAI) -> None:
    faulty = uploaded(sdk, ROW, {"messages": [{"role": "user", "content": "and then?"}]})
    error = refused(sdk, model=CHAT_MODEL, training_file=faulty)
    assert (error.code, error.param) == ("invalid_training_data", "training_file")
    assert "line 2" in error.message
    assert sdk.fine_tuning.jobs.list().data == []


def test_a_file_of_another_purpose_and_an_unknown_one_are_refused(sdk: openai.OpenAI) -> None:
    batch = sdk.files.create(file=("rows.jsonl", json.dumps(ROW).encode()), purpose="batch").id
    assert refused(sdk, model=CHAT_MODEL, training_file=batch).param == "training_file"
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file="file-" + "0" * 24)
    assert (unknown.value.code, unknown.value.param) == ("file_not_found", "training_file")


# How it goes


def trained(worker: StandInWorker, claim: Claim, *, steps: int = 2) -> None:
    """The reports of a training of some steps, each with a loss of one over its number."""
    events: list[tuple[str, dict[str, Any]]] = [("evaluation", {"step": 0, "loss": 3.0})]
    for step in range(1, steps + 1):
        events.append(("metrics", {"step": step, "loss": 1 / step, "learning_rate": 1e-4, "tokens": 10 * step}))
        events.append(("progress", {"step": step, "total_steps": steps, "epoch": 1.0, "eta_seconds": 60.0}))
    events.append(("evaluation", {"step": steps, "loss": 0.25, "mean_token_accuracy": 0.75}))
    worker.jobs.report(claim.job.id, claim.fence, events)


def test_a_running_job_says_when_it_will_have_ended(
    sdk: openai.OpenAI, worker: StandInWorker, training_file: str
) -> None:
    job = sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file=training_file)
    claim = worker.take(role="finetune")
    assert sdk.fine_tuning.jobs.retrieve(job.id).estimated_finish is None
    trained(worker, claim)
    running = sdk.fine_tuning.jobs.retrieve(job.id)
    assert running.status == "running"
    assert running.estimated_finish == pytest.approx(time.time() + 60, abs=5)


def test_a_trained_job_names_its_model_its_files_and_its_tokens(
    sdk: openai.OpenAI, worker: StandInWorker, training_file: str
) -> None:
    job = sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file=training_file)
    model = adapter_id(CHAT_MODEL, "default", "adapter", job.id)
    result = {
        "adapter": model,
        "served": "mixed-batch",
        "metrics": {"tokens": 20},
        "files": {"loss.png": "file-" + "b" * 24, "metrics.csv": "file-" + "a" * 24},
    }
    worker.succeed(worker.take(role="finetune"), result)
    ended = sdk.fine_tuning.jobs.retrieve(job.id)
    assert (ended.status, ended.fine_tuned_model, ended.trained_tokens) == ("succeeded", model, 20)
    assert ended.result_files == ["file-" + "a" * 24, "file-" + "b" * 24]
    assert ended.finished_at is not None
    assert ours(ended)["served"] == "mixed-batch"


def test_a_failed_job_says_why_and_how_far_it_came(
    sdk: openai.OpenAI, client: httpx.Client, worker: StandInWorker, training_file: str
) -> None:
    job = sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file=training_file)
    files = {"loss.png": "file-" + "b" * 24, "metrics.csv": "file-" + "a" * 24}
    error = OutOfMemory("too long a row", param="training_file")
    worker.fail(worker.take(role="finetune"), error, left={"files": files})
    failed = sdk.fine_tuning.jobs.retrieve(job.id)
    assert (failed.status, failed.fine_tuned_model) == ("failed", None)
    assert failed.result_files == [files["metrics.csv"], files["loss.png"]]
    assert client.get(f"/v1/jobs/{job.id}").json()["result"] == {"files": files}
    assert client.get(f"/v1/jobs/{job.id}/result").json()["error"]["code"] == "out_of_memory"
    assert failed.error is not None
    assert failed.error.to_dict() == {"code": "out_of_memory", "message": "too long a row", "param": "training_file"}
    event = sdk.fine_tuning.jobs.list_events(job.id, limit=1).data[0]
    assert (event.level, event.message) == ("error", "The job failed: too long a row")


def test_a_job_is_cancelled_paused_and_resumed(sdk: openai.OpenAI, worker: StandInWorker, training_file: str) -> None:
    job = sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file=training_file)
    paused = sdk.fine_tuning.jobs.pause(job.id)
    assert (paused.status, ours(paused)["paused"]) == ("queued", True)
    resumed = sdk.fine_tuning.jobs.resume(job.id)
    assert ours(resumed)["paused"] is False
    assert sdk.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert [event.message for event in sdk.fine_tuning.jobs.list_events(job.id)] == [
        "The job was cancelled",
        "The job is resumed",
        "The job is paused",
        f"Created fine-tuning job: {job.id}",
    ]


def test_the_events_tell_the_course_newest_first(
    sdk: openai.OpenAI, worker: StandInWorker, training_file: str
) -> None:
    job = sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file=training_file)
    claim = worker.take(role="finetune")
    trained(worker, claim)
    worker.succeed(claim, {"adapter": "ft:new", "metrics": {}})
    # Page by page, as the client iterates.
    events = list(sdk.fine_tuning.jobs.list_events(job.id, limit=2))
    assert [event.message for event in events] == [
        "New fine-tuned model created: ft:new",
        "Step 2/2: validation loss=0.25",
        "Step 2/2: training loss=0.50",
        "Step 1/2: training loss=1.00",
        "Step 0/2: validation loss=3.00",
        "Fine-tuning job started",
        f"Created fine-tuning job: {job.id}",
    ]
    assert len({event.id for event in events}) == len(events)
    assert {event.type for event in events} == {"message", "metrics"}
    assert events[1].data == {"step": 2, "valid_loss": 0.25, "valid_mean_token_accuracy": 0.75, "total_steps": 2}
    assert isinstance(events[2].data, dict)
    assert events[2].data["train_loss"] == 0.5


def test_a_long_course_is_read_to_its_start(sdk: openai.OpenAI, worker: StandInWorker, training_file: str) -> None:
    """Longer than what is read from the queue's server at once."""
    job = sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file=training_file)
    trained(worker, worker.take(role="finetune"), steps=2 * CHUNK)
    events = list(sdk.fine_tuning.jobs.list_events(job.id, limit=100))
    steps = [event.data["step"] for event in events if isinstance(event.data, dict) and "train_loss" in event.data]
    assert steps == list(range(2 * CHUNK, 0, -1))
    assert events[-1].message == f"Created fine-tuning job: {job.id}"


def test_checkpoints_are_models_with_what_was_known_at_their_step(
    sdk: openai.OpenAI, worker: StandInWorker, services: Services, training_file: str
) -> None:
    job = sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file=training_file)
    model = adapter_id(CHAT_MODEL, "default", "adapter", job.id)
    claim = worker.take(role="finetune")
    trained(worker, claim)
    for name in (f"{model}:ckpt-step-1", f"{model}:ckpt-step-2", model):
        services.adapters.publish(
            AdapterManifest(
                id=name,
                owner="default",
                base=CHAT_MODEL,
                base_revision=None,
                task="text-generation",
                method=LoraMethod(),
                job_id=job.id,
                files={},
                created_at=1_800_000_000.0,
            )
        )
    first = sdk.fine_tuning.jobs.checkpoints.list(job.id, limit=1)
    assert first.has_more
    last, earlier = list(first)
    assert [one.fine_tuned_model_checkpoint for one in (last, earlier)] == [
        f"{model}:ckpt-step-2",
        f"{model}:ckpt-step-1",
    ]
    assert (last.step_number, last.metrics.train_loss, last.metrics.full_valid_loss) == (2, 0.5, 0.25)
    assert last.metrics.full_valid_mean_token_accuracy == 0.75
    assert (earlier.metrics.step, earlier.metrics.train_loss, earlier.metrics.valid_loss) == (1, 1.0, 3.0)


# Lists


def test_a_list_is_read_page_by_page_and_by_labels(sdk: openai.OpenAI, training_file: str) -> None:
    made = [
        sdk.fine_tuning.jobs.create(
            model=CHAT_MODEL, training_file=training_file, metadata={"n": str(number % 2)} if number else None
        ).id
        for number in range(5)
    ]
    assert [job.id for job in sdk.fine_tuning.jobs.list(limit=2)] == made[::-1]
    assert [job.id for job in sdk.fine_tuning.jobs.list(metadata={"n": "1"})] == [made[3], made[1]]
    assert [job.id for job in sdk.fine_tuning.jobs.list(extra_query={"metadata": "null"})] == [made[0]]
    with pytest.raises(openai.BadRequestError, match="alone"):
        sdk.fine_tuning.jobs.list(extra_query={"metadata": "none"})


def test_a_job_of_another_kind_is_none_of_these(sdk: openai.OpenAI, client: httpx.Client) -> None:
    other = client.post(
        "/v1/jobs", json={"kind": "inference", "task": "text-generation", "model": CHAT_MODEL, "inputs": "x"}
    ).json()["id"]
    for call in (sdk.fine_tuning.jobs.retrieve, sdk.fine_tuning.jobs.cancel, sdk.fine_tuning.jobs.list_events):
        with pytest.raises(openai.NotFoundError, match="no fine-tuning job"):
            call(other)
    assert sdk.fine_tuning.jobs.list().data == []
    with pytest.raises(openai.BadRequestError, match="no event's id"):
        sdk.fine_tuning.jobs.list_events(
            client.post(
                "/v1/fine_tuning/jobs",
                json={"model": CHAT_MODEL, "training_file": uploaded(sdk, ROW)},
            ).json()["id"],
            after="somewhere",
        )


def test_our_own_clients_see_the_same_job(sdk: openai.OpenAI, client: httpx.Client, training_file: str) -> None:
    job = sdk.fine_tuning.jobs.create(model=CHAT_MODEL, training_file=training_file)
    assert client.get(f"/v1/jobs/{job.id}").json()["kind"] == "finetune"
    own = client.post(
        "/v1/jobs",
        json={
            "kind": "finetune",
            "model": CHAT_MODEL,
            "training_file": training_file,
            "hyperparameters": {"epochs": 0.5},
        },
    ).json()["id"]
    shown = sdk.fine_tuning.jobs.retrieve(own)
    assert (shown.hyperparameters.n_epochs, ours(shown)["hyperparameters"]["epochs"]) == (None, 0.5)
