"""A batch on its way from file to files, step by step, over real stores; the worker's part is written here."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api.batches import following
from api.batches.drive import Drive
from tandem.batch import Batch
from tandem.batch_store import BatchStore
from tandem.errors import Draining, InvalidModel, Superseded, UnknownArtifact
from tandem.job import Failure, Job, JobState
from tandem.job_store import Claim, Share
from tandem.services import Services
from tandem.settings import Settings
from tandem.shard_rows import RowAnswer, read_shard
from tandem.specs.media import ARTIFACT
from tandem.tickets import lane
from tandem.webhooks.events import WebhookEvents

CHAT = "/v1/chat/completions"
MODELS = ("one", "two")
LEASE_SECONDS = 30.0
OWNER = "a"
LAST_STEP = 50
"""A batch that has not ended by then goes round in a circle."""


@pytest.fixture
def services(valkey_url: str, tmp_path: Path) -> Iterator[Services]:
    catalogue = tmp_path / "models.toml"
    catalogue.write_text(
        "".join(f'[[models]]\nname = "{m}"\nfolder = "f"\ntasks = ["text-generation"]\n' for m in MODELS)
    )
    settings = Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}/artifacts", catalogue=catalogue)
    services = Services.connect(settings)
    yield services
    services.jobs.close()


def line(number: int, model: str = "one", **body: Any) -> dict[str, Any]:
    asked = {"model": model, "messages": [{"role": "user", "content": f"question {number}"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": CHAT, "body": asked | body}


def create(
    services: Services, *lines: dict[str, Any] | str, window: str = "24h", share: Share | None = None
) -> Batch:
    written = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines).encode()
    file = services.files.create([written], filename="r.jsonl", purpose="batch", owner=OWNER, limit=10**7)
    return services.batches.create(
        owner=OWNER, share=share or Share(), endpoint=CHAT, file=file, completion_window=window
    )


def take(services: Services) -> Drive:
    """As a clerk does."""
    batch = services.batches.take(LEASE_SECONDS)
    assert batch is not None
    return Drive(services, batch, threading.Event())


def drive_until(drive: Drive, *statuses: str) -> Batch:
    for _ in range(LAST_STEP):
        if drive.batch.status in statuses:
            return drive.batch
        drive.step()
    raise AssertionError(f"it is still {drive.batch.status}")


def claim(services: Services, model: str = "one") -> Claim:
    claimed = services.jobs.claim(lane("batch", model), "w")
    assert claimed is not None
    return claimed


def rows_of(services: Services, job: Job) -> list[tuple[int, str]]:
    """Each row of a shard with what it asks."""
    (digest,) = ARTIFACT.findall(job.spec["rows"])
    return [(row.row, row.spec["inputs"][0]["content"]) for row in read_shard(services.artifacts.chunks(digest))]


def answer_of(row: int, asked: str) -> RowAnswer:
    result = {
        "generated_text": f"answer to {asked}",
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "path": "engine",
    }
    return RowAnswer(row, 1000.0, result)


def part(services: Services, answers: list[RowAnswer]) -> str:
    return services.artifacts.put_stream(answer.line() for answer in answers).digest


def succeed(services: Services, claimed: Claim) -> None:
    """Answer every row of a shard."""
    answers = [answer_of(row, asked) for row, asked in rows_of(services, claimed.job)]
    result = {"parts": [f"artifact-{part(services, answers)}"], "completed": len(answers), "failed": 0}
    services.jobs.finish(claimed.job.id, claimed.fence, JobState.SUCCEEDED, result=result)


def answer_some(services: Services, claimed: Claim, count: int) -> None:
    """Keep the answers of a shard's first rows."""
    answers = [answer_of(row, asked) for row, asked in rows_of(services, claimed.job)[:count]]
    checkpoint = {
        "files": {"part-0": part(services, answers)},
        "done": [answer.row for answer in answers],
        "completed": count,
        "failed": 0,
    }
    services.jobs.save_checkpoint(claimed.job.id, claimed.fence, checkpoint)


def lines_of(services: Services, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    content = b"".join(services.files.content(services.files.get(file_id)))
    return [json.loads(each) for each in content.splitlines()]


def answered(services: Services, batch: Batch) -> list[tuple[str, str]]:
    return [
        (each["custom_id"], each["response"]["body"]["choices"][0]["message"]["content"])
        for each in lines_of(services, batch.output_file_id)
    ]


def test_rows_of_several_models_come_back_in_input_order(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.batches.shard_cutter.MAX_SHARD_ROWS", 2)
    create(services, *(line(number, MODELS[number % 3 == 0]) for number in range(9)))
    drive = take(services)
    drive_until(drive, "in_progress")
    drive.step()
    for model, shards in (("one", 3), ("two", 2)):
        for _ in range(shards):
            succeed(services, claim(services, model))

    batch = drive_until(drive, "completed")
    assert answered(services, batch) == [(f"row-{n}", f"answer to question {n}") for n in range(9)]
    assert (batch.total, batch.completed, batch.failed) == (9, 9, 0)
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (45, 18)
    assert (batch.error_file_id, batch.errors) == (None, ())
    assert drive.step() is True
    assert services.batches.take(LEASE_SECONDS) is None


def test_a_faulty_file_fails_before_anything_runs(services: Services) -> None:
    create(services, line(1), "{", line(1), line(2))
    batch = drive_until(take(services), "failed")

    assert [(error.line, error.code) for error in batch.errors] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
    ]
    assert services.jobs.claim(lane("batch", "one"), "w") is None
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_a_broken_body_is_its_rows_error(services: Services) -> None:
    bodies = [line(1, temperature=9), line(2), line(3, "nobody"), line(4, stream=True), line(5, tols=[])]
    create(services, *bodies)
    drive = take(services)
    batch = drive_until(drive, "in_progress")
    assert [(error.line, error.param) for error in batch.errors] == [
        (1, "body.temperature"),
        (3, "body.model"),
        (4, "body.stream"),
        (5, "body.tols"),
    ]
    assert (batch.total, batch.failed) == (5, 4)
    drive.step()
    succeed(services, claim(services))

    batch = drive_until(drive, "completed")
    assert [custom_id for custom_id, _ in answered(services, batch)] == ["row-2"]
    refused = lines_of(services, batch.error_file_id)
    assert [(each["custom_id"], each["response"]["status_code"]) for each in refused] == [
        ("row-1", 400),
        ("row-3", 404),
        ("row-4", 400),
        ("row-5", 400),
    ]
    assert {each["error"] for each in refused} == {None}
    assert (batch.completed, batch.failed) == (1, 4)


def test_a_file_of_broken_bodies_runs_nothing(services: Services) -> None:
    create(services, line(1, "nobody"))
    batch = drive_until(take(services), "completed")
    assert (batch.completed, batch.failed, batch.output_file_id) == (0, 1, None)
    assert len(lines_of(services, batch.error_file_id)) == 1


def test_counts_are_live(services: Services) -> None:
    create(services, *(line(number) for number in range(4)))
    drive = take(services)
    drive_until(drive, "in_progress")
    drive.step()
    claimed = claim(services)
    progress = {"completed": 2, "failed": 1, "total": 4}
    services.jobs.report(claimed.job.id, claimed.fence, [("progress", progress)])
    drive.step()

    batch = services.batches.get(drive.batch.id, OWNER)
    assert (batch.status, batch.completed, batch.failed) == ("in_progress", 2, 1)


def test_a_row_that_failed_has_its_errors_status(services: Services) -> None:
    create(services, line(1), line(2))
    drive = take(services)
    drive_until(drive, "in_progress")
    drive.step()
    claimed = claim(services)
    (first, asked), (second, _) = rows_of(services, claimed.job)
    too_long = Failure(type="PromptTooLong", code="context_length_exceeded", message="too long", param="inputs")
    parts = [part(services, [answer_of(first, asked), RowAnswer(second, 1.0, failure=too_long)])]
    result = {"parts": [f"artifact-{digest}" for digest in parts], "completed": 1, "failed": 1}
    services.jobs.finish(claimed.job.id, claimed.fence, JobState.SUCCEEDED, result=result)

    batch = drive_until(drive, "completed")
    (failed,) = lines_of(services, batch.error_file_id)
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert (batch.completed, batch.failed) == (1, 1)


def test_a_failed_shard_fails_its_rows_and_no_others(services: Services) -> None:
    create(services, line(1), line(2, "two"))
    drive = take(services)
    drive_until(drive, "in_progress")
    drive.step()
    broken = claim(services)
    failure = Failure.of(InvalidModel("broken weights"))
    services.jobs.finish(broken.job.id, broken.fence, JobState.FAILED, failure=failure)
    succeed(services, claim(services, "two"))

    batch = drive_until(drive, "completed")
    assert [custom_id for custom_id, _ in answered(services, batch)] == ["row-2"]
    (failed,) = lines_of(services, batch.error_file_id)
    assert failed["response"]["body"]["error"]["message"] == "broken weights"


def test_a_cancelled_batch_keeps_what_was_done(services: Services) -> None:
    create(services, *(line(number) for number in range(3)))
    drive = take(services)
    drive_until(drive, "in_progress")
    drive.step()
    claimed = claim(services)
    answer_some(services, claimed, 1)

    assert services.batches.cancel(drive.batch.id, OWNER).status == "cancelling"
    drive.step()
    assert services.jobs.get(claimed.job.id).cancel_requested
    services.jobs.finish(claimed.job.id, claimed.fence, JobState.CANCELLED)

    batch = drive_until(drive, "cancelled")
    assert [custom_id for custom_id, _ in answered(services, batch)] == ["row-0"]
    left = lines_of(services, batch.error_file_id)
    assert [(each["custom_id"], each["response"], each["error"]["code"]) for each in left] == [
        ("row-1", None, "batch_cancelled"),
        ("row-2", None, "batch_cancelled"),
    ]
    assert (batch.completed, batch.failed, batch.total) == (1, 2, 3)


def test_a_batch_that_is_cancelled_before_it_is_read_ends_at_once(services: Services) -> None:
    batch = create(services, line(1))
    services.batches.cancel(batch.id, OWNER)
    batch = drive_until(take(services), "cancelled")
    assert (batch.total, batch.output_file_id, batch.error_file_id) == (0, None, None)


def test_an_expired_batch_keeps_what_was_done(services: Services) -> None:
    create(services, *(line(number) for number in range(2)), window="2s")
    drive = take(services)
    drive_until(drive, "in_progress")
    drive.step()
    claimed = claim(services)
    answer_some(services, claimed, 1)
    # As the executor ends an attempt whose deadline has passed.
    services.jobs.finish(claimed.job.id, claimed.fence, JobState.EXPIRED)

    batch = drive_until(drive, "expired")
    assert [custom_id for custom_id, _ in answered(services, batch)] == ["row-0"]
    (left,) = lines_of(services, batch.error_file_id)
    assert (left["custom_id"], left["response"], left["error"]["code"]) == ("row-1", None, "batch_expired")


def test_what_there_is_no_time_for_is_not_submitted(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MIN_SECONDS", 3600.0)
    create(services, line(1), window="1s")
    batch = drive_until(take(services), "expired")
    (left,) = lines_of(services, batch.error_file_id)
    assert left["error"]["code"] == "batch_expired"


def test_a_full_queue_is_waited_for(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner's limit of one queued job: the shards go one after the other."""
    monkeypatch.setattr("api.batches.shard_cutter.MAX_SHARD_ROWS", 1)
    create(services, line(1), line(2), share=Share(max_queued=1))
    drive = take(services)
    drive_until(drive, "in_progress")
    drive.step()
    drive.step()
    first = claim(services)
    assert services.jobs.claim(lane("batch", "one"), "w") is None
    drive.step()
    succeed(services, first)
    succeed(services, claim(services))
    assert drive_until(drive, "completed").completed == 2


@pytest.mark.parametrize("when", ["validated", "submitted", "answered", "finalizing"])
def test_another_clerk_goes_on_where_one_has_died(services: Services, when: str) -> None:
    """Whatever the first one has done is found: no shard runs twice, and there is one output file."""
    create(services, line(1), line(2))
    died = take(services)
    drive_until(died, "in_progress")
    if when == "submitted":
        # It dies between the submission and noting it.
        with killed_at(BatchStore, "update"):
            died.step()
    elif when != "validated":
        died.step()
        succeed(services, claim(services))
        if when == "finalizing":
            drive_until(died, "finalizing")
            with killed_at(Drive, "_end"):
                died.step()
    services.batches.renew(died.batch, 0.0)

    goes_on = take(services)
    goes_on.step()
    if when in ("validated", "submitted"):
        succeed(services, claim(services))
    batch = drive_until(goes_on, "completed")
    assert len(answered(services, batch)) == 2
    assert services.jobs.claim(lane("batch", "one"), "w") is None
    assert len(services.files.list(purpose="batch_output")) == 1
    with pytest.raises(Superseded):
        died.step()


@contextmanager
def killed_at(owner: type, method: str) -> Iterator[None]:
    """The clerk's process ends where the block calls this method."""

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, dies)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_clerk_whose_process_ends_breaks_off(services: Services) -> None:
    create(services, line(1))
    batch = services.batches.take(LEASE_SECONDS)
    assert batch is not None
    stopping = threading.Event()
    stopping.set()
    drive = Drive(services, batch, stopping)
    with pytest.raises(Draining):
        drive.step()
    drive.give_back()
    assert drive_until(take(services), "in_progress")


def test_a_batch_whose_file_is_gone_fails(services: Services) -> None:
    batch = create(services, line(1))
    services.artifacts.discard(batch.input_digest, older_than=float("inf"))
    drive = take(services)
    with pytest.raises(UnknownArtifact) as gone:
        drive.step()
    drive.fail(gone.value)
    (error,) = drive.batch.errors
    assert (drive.batch.status, error.code) == ("failed", "artifact_not_found")


def test_a_batch_that_fails_stops_its_shards(services: Services) -> None:
    create(services, line(1))
    drive = take(services)
    drive_until(drive, "in_progress")
    drive.step()
    claimed = claim(services)
    drive.fail(UnknownArtifact("gone"))
    assert services.jobs.get(claimed.job.id).cancel_requested


def test_a_shard_is_bound_to_its_batches_time(services: Services) -> None:
    create(services, line(1), window="1h")
    drive = take(services)
    drive_until(drive, "in_progress")
    drive.step()
    job = claim(services).job
    assert job.priority == "low"
    assert job.deadline == pytest.approx(drive.batch.expires_at, abs=1.0)


def test_the_end_is_announced(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[Any] = []
    monkeypatch.setattr(WebhookEvents, "announce", lambda _self, *event: announced.append(event))
    batch = create(services, "{")
    drive = take(services)
    drive_until(drive, "failed")
    assert announced == []
    drive.step()
    assert announced == [(OWNER, "batch.failed", batch.id)]
