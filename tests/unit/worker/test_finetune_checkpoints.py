"""A fine-tuning job that is stopped goes on elsewhere: from its record and the artifact store alone.

The models, the training and the stores are real; the attempt is a stand-in, so that a test stops it where it likes.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tandem.adapters import AdapterStore
from tandem.artifacts import ArtifactStore
from tandem.catalogue import CatalogueEntry
from tandem.errors import (
    AttemptStopped,
    Cancelled,
    Draining,
    InvalidRequest,
    InvalidTrainingData,
    Paused,
    QueueUnavailable,
    Superseded,
    UnknownAdapter,
)
from tandem.files import FileStore
from tandem.job_store import JobStore
from tandem.settings import Settings
from tests.unit.training.tiny import chatml_tokenizer, colour_rows, tiny_llama
from worker.attempt import Attempt
from worker.batchers import Batchers
from worker.residency import Key, ResidentModels
from worker.resident_model import ResidentModel
from worker.runners.finetune import FineTuneRunner
from worker.stall import StallWatch
from worker.training.checkpoint import CHECKPOINT_FILES
from worker.training.turns import Turns

ADAPTER = "adapter_model.safetensors"


@dataclass
class StandInAttempt:
    """What a runner sees of an attempt; it is stopped when `check` is called for the `stop_at`-th time."""

    spec: dict[str, Any]
    job_id: str
    checkpoint: dict[str, Any] | None = None
    stop_at: int | None = None
    reason: type[AttemptStopped] = Draining
    refusals: list[type[Exception]] = field(default_factory=list)
    """Raised by the next calls of `save_checkpoint`, one each."""

    def __post_init__(self) -> None:
        self.saved: list[dict[str, Any]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._checks = 0
        self.left: Callable[[], Any] = lambda: None

    def leave(self, make: Callable[[], Any]) -> None:
        self.left = make

    @property
    def job(self) -> SimpleNamespace:
        return SimpleNamespace(id=self.job_id, owner="owner", spec=self.spec, checkpoint=self.checkpoint)

    def check(self) -> None:
        self._checks += 1
        if self._checks == self.stop_at:
            raise self.reason

    def report(self, event: str, data: dict[str, Any]) -> None:
        self.events.append((event, data))

    def save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        # Through JSON, as the record is.
        self.saved.append(json.loads(json.dumps(checkpoint)))

    def steps(self, event: str) -> list[int]:
        return [data["step"] for name, data in self.events if name == event]


@dataclass
class Stores:
    """What every worker reaches, and what a job asks for."""

    jobs: JobStore
    artifacts: ArtifactStore
    training_file: str

    def worker(self) -> FineTuneRunner:
        """A worker of its own: no model, turn or folder is shared with another."""

        def load(_: Key) -> ResidentModel:
            entry = CatalogueEntry(name="tiny", tasks=("text-generation",), hub="tiny/llama", revision="1")
            return ResidentModel(
                entry,
                "text-generation",
                tiny_llama(),
                chatml_tokenizer(),
                engine=None,
                batchers=Batchers(pytest.fail),
                weight_bytes=1,
                load_seconds=0.0,
                unwatch=lambda: None,
            )

        return FineTuneRunner(
            ResidentModels(1, measure=lambda _: 1, load=load),
            FileStore(self.jobs, self.artifacts),
            AdapterStore(self.jobs, self.artifacts),
            self.artifacts,
            Turns(0.0),
            StallWatch(60.0, pytest.fail),
            adapter_rank=64,
        )

    def attempt(
        self, job_id: str = "job_1", *, settings: dict[str, Any] | None = None, **options: Any
    ) -> StandInAttempt:
        """`settings` are fields of the spec."""
        hyperparameters = {"max_steps": 6, "batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2}
        spec = {
            "kind": "finetune",
            "model": "tiny",
            "training_file": self.training_file,
            "validation_file": self.training_file,
            "method": {"dropout": 0.2},
            "hyperparameters": {**hyperparameters, "save_steps": options.pop("save_steps", None)},
            **(settings or {}),
        }
        return StandInAttempt(spec, job_id, **options)

    def run(self, attempt: StandInAttempt) -> dict[str, Any]:
        return self.worker()(cast("Attempt", attempt))

    def weights(self, result: dict[str, Any]) -> bytes:
        manifest = AdapterStore(self.jobs, self.artifacts).get(result["adapter"])
        return self.artifacts.read(manifest.files[ADAPTER])


@pytest.fixture(autouse=True)
def _one_compute_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is far too small for two
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stores(valkey_url: str, tmp_path: Path) -> Iterator[Stores]:
    settings = Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path / 'artifacts'}")
    artifacts = ArtifactStore(settings.artifacts_url)
    jobs = JobStore(settings, artifacts)
    rows = "\n".join(row.model_dump_json() for row in colour_rows()).encode()
    file = FileStore(jobs, artifacts).create(
        [rows], filename="rows.jsonl", purpose="fine-tune", owner="owner", limit=len(rows)
    )
    yield Stores(jobs, artifacts, file.id)
    jobs.close()


@pytest.mark.parametrize("reason", [Draining, Paused])
def test_another_worker_goes_on_to_the_same_adapter(
    stores: Stores, reason: type[AttemptStopped], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the midst of an accumulation and resumed by a worker that has only the record and the store: the
    adapter of a training that was never stopped. Neither leaves a file of its own behind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    expected = stores.weights(stores.run(stores.attempt("job_unstopped")))

    stopped = stores.attempt(stop_at=10, reason=reason)
    with pytest.raises(reason):
        stores.run(stopped)
    (checkpoint,) = stopped.saved
    assert set(checkpoint["files"]) == set(CHECKPOINT_FILES)
    assert all(stores.artifacts.exists(digest) for digest in checkpoint["files"].values())
    assert stopped.steps("checkpoint") == [checkpoint["step"]]
    assert checkpoint["step"] > 0

    resumed = stores.attempt(checkpoint=checkpoint)
    result = stores.run(resumed)
    assert resumed.steps("resumed") == [checkpoint["step"]]
    assert resumed.steps("progress") == list(range(checkpoint["step"] + 1, 7))
    assert stores.weights(result) == expected
    assert list(scratch.iterdir()) == []


def test_checkpoints_are_recorded_while_the_training_runs(stores: Stores) -> None:
    """Each takes the place of the one before; what a crashed worker recorded is what the next one goes on from. The
    last of them stands before the last evaluation, which may be long."""
    attempt = stores.attempt(save_steps=2)
    expected = stores.weights(stores.run(attempt))
    assert [checkpoint["step"] for checkpoint in attempt.saved] == [2, 4, 6]
    assert attempt.steps("checkpoint") == [2, 4, 6]
    for number, (checkpoint, steps) in enumerate(zip(attempt.saved, [[3, 4, 5, 6], [5, 6], []], strict=True)):
        resumed = stores.attempt(f"job_resumed{number}", save_steps=2, checkpoint=checkpoint)
        assert stores.weights(stores.run(resumed)) == expected
        assert resumed.steps("progress") == steps
        assert resumed.steps("evaluation") == [6]


def test_a_checkpoint_whose_files_are_gone_costs_time_and_not_the_job(stores: Stores) -> None:
    files = dict.fromkeys(CHECKPOINT_FILES, "0" * 64)
    attempt = stores.attempt(checkpoint={"step": 4, "files": files})
    stores.run(attempt)
    assert attempt.events[0][0] == "warning"
    assert "starts anew" in attempt.events[0][1]["message"]
    assert attempt.steps("progress") == [1, 2, 3, 4, 5, 6]


def test_names_in_a_record_choose_no_path(stores: Stores, tmp_path: Path) -> None:
    """Only the files of a checkpoint are fetched, whatever else a record names."""
    stopped = stores.attempt(stop_at=10)
    with pytest.raises(Draining):
        stores.run(stopped)
    (checkpoint,) = stopped.saved
    foreign = tmp_path / "foreign.txt"
    checkpoint["files"][str(foreign)] = stores.artifacts.put(b"foreign").digest
    attempt = stores.attempt(checkpoint=checkpoint)
    stores.run(attempt)
    assert attempt.steps("resumed") == [checkpoint["step"]]
    assert not foreign.exists()


def test_a_server_that_is_away_for_a_moment_costs_no_checkpoint(stores: Stores) -> None:
    """While the training runs it goes on and says so; when it is stopped, it waits a little for the server."""
    attempt = stores.attempt(save_steps=1, stop_at=10, refusals=[QueueUnavailable])
    with pytest.raises(Draining):
        stores.run(attempt)
    assert attempt.steps("warning") == [1]
    assert attempt.saved[-1]["step"] == attempt.steps("progress")[-1]

    stopping = stores.attempt("job_2", stop_at=10, refusals=[QueueUnavailable, QueueUnavailable])
    with pytest.raises(Draining):
        stores.run(stopping)
    assert [checkpoint["step"] for checkpoint in stopping.saved] == [stopping.steps("progress")[-1]]


def test_a_server_that_stays_away_holds_up_no_drain(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.runners.training_checkpoints.RECORD_SECONDS", 0.0)
    attempt = stores.attempt(stop_at=10, refusals=[QueueUnavailable, QueueUnavailable])
    with pytest.raises(Draining):
        stores.run(attempt)
    assert attempt.saved == []
    assert attempt.refusals == [], "it was tried once more"


def test_an_attempt_that_lost_its_job_stops_at_its_checkpoint(stores: Stores) -> None:
    attempt = stores.attempt(save_steps=1, refusals=[Superseded])
    with pytest.raises(Superseded):
        stores.run(attempt)
    assert attempt.steps("progress") == [1]
    assert attempt.saved == []


def file_of(stores: Stores, file_id: str) -> tuple[str, bytes]:
    files = FileStore(stores.jobs, stores.artifacts)
    file = files.get(file_id)
    assert file.owner == "owner"
    return file.purpose, b"".join(files.content(file))


def test_the_course_of_a_training_is_stored_as_files(stores: Stores) -> None:
    """A table and a picture of the loss, in files of the job's owner that the result names."""
    attempt = stores.attempt("job_curve")
    result = stores.run(attempt)
    purpose, table = file_of(stores, result["files"]["metrics.csv"])
    assert purpose == "fine-tune-results"
    lines = table.decode().splitlines()
    assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "2", "3", "4", "5", "6"]
    purpose, picture = file_of(stores, result["files"]["loss.png"])
    assert purpose == "fine-tune-results"
    assert picture.startswith(b"\x89PNG")
    assert result["checkpoints"] == []
    assert attempt.events[0][0] == "data"
    assert stores.run(stores.attempt("job_curve"))["files"] == result["files"], "an attempt after its end makes none"


def test_a_training_that_ends_early_leaves_its_course(stores: Stores) -> None:
    """Cancelled after it had moved to another worker: the files show the steps of both, each once."""
    drained = stores.attempt("job_cut", stop_at=10)
    with pytest.raises(Draining):
        stores.run(drained)
    cancelled = stores.attempt("job_cut", checkpoint=drained.saved[-1], stop_at=8, reason=Cancelled)
    with pytest.raises(Cancelled):
        stores.run(cancelled)
    steps = [0, *drained.steps("metrics"), *cancelled.steps("metrics")]
    assert cancelled.steps("metrics")
    files = cancelled.left()["files"]
    table = file_of(stores, files["metrics.csv"])[1].decode().splitlines()
    assert [int(line.split(",")[0]) for line in table[1:]] == steps == list(range(len(steps)))
    assert file_of(stores, files["loss.png"])[1].startswith(b"\x89PNG")


def test_a_training_that_did_not_begin_leaves_nothing(stores: Stores) -> None:
    attempt = stores.attempt("job_none", stop_at=2, reason=Cancelled)
    with pytest.raises(Cancelled):
        stores.run(attempt)
    assert attempt.left() is None


def test_checkpoints_are_published_and_the_old_ones_withdrawn(stores: Stores) -> None:
    """Each is an adapter of its own name; of four, the limit keeps the newest two and the result lists them."""
    attempt = stores.attempt(
        "job_published", save_steps=1, settings={"publish_checkpoints": True, "save_total_limit": 2}
    )
    result = stores.run(attempt)
    assert attempt.steps("published_checkpoint") == [1, 2, 3, 4, 5, 6]
    kept = result["checkpoints"]
    assert [checkpoint["step"] for checkpoint in kept] == [5, 6]
    assert [checkpoint["adapter"] for checkpoint in kept] == [f"{result['adapter']}:ckpt-step-{n}" for n in (5, 6)]
    assert kept[1]["metrics"]["valid_loss"] == result["metrics"]["validation_loss_after"]
    assert {"step", "train_loss", "train_mean_token_accuracy"} <= kept[0]["metrics"].keys()
    adapters = AdapterStore(stores.jobs, stores.artifacts)
    last = adapters.get(kept[1]["adapter"])
    assert last.job_id == "job_published"
    assert stores.artifacts.read(last.files[ADAPTER]) == stores.weights(result)
    with pytest.raises(UnknownAdapter):
        adapters.get(f"{result['adapter']}:ckpt-step-4")


def test_the_best_checkpoint_is_never_withdrawn(stores: Stores) -> None:
    """Evaluated after each step at a rate that soon ruins the adapter, an early one is the best of them."""
    settings = {
        "publish_checkpoints": True,
        "save_total_limit": 2,
        "hyperparameters": {"max_steps": 6, "save_steps": 1, "eval_steps": 1, "learning_rate": 0.9, "keep": "best"},
    }
    result = stores.run(stores.attempt("job_best", settings=settings))
    losses = {
        event["step"]: event["loss"]
        for event in result["metrics"]["history"]
        if event["type"] == "evaluation" and event["step"]
    }
    best = min(losses, key=lambda step: losses[step])
    assert best < 5
    assert [checkpoint["step"] for checkpoint in result["checkpoints"]] == [best, 6]
    assert result["metrics"]["kept_step"] == best
    adapters = AdapterStore(stores.jobs, stores.artifacts)
    assert stores.artifacts.read(adapters.get(result["checkpoints"][0]["adapter"]).files[ADAPTER]) == stores.weights(
        result
    )


def test_a_job_that_moves_lists_the_checkpoints_of_all_its_attempts(stores: Stores) -> None:
    settings = {"publish_checkpoints": True}
    first = stores.attempt("job_moved", save_steps=2, settings=settings, stop_at=16)
    with pytest.raises(Draining):
        stores.run(first)
    second = stores.attempt("job_moved", save_steps=2, settings=settings, checkpoint=first.saved[-1])
    result = stores.run(second)
    assert first.steps("published_checkpoint")
    assert second.steps("published_checkpoint")
    steps = {*first.steps("published_checkpoint"), *second.steps("published_checkpoint")}
    assert [checkpoint["step"] for checkpoint in result["checkpoints"]] == sorted(steps)


def test_broken_rows_are_skipped_by_the_users_choice(stores: Stores) -> None:
    files = FileStore(stores.jobs, stores.artifacts)
    lines = b'{"prompt": "red means ", "completion": "stop"}\n{"prompt": 1}\n{"text": "green means go"}\n'
    broken = files.create([lines], filename="broken.jsonl", purpose="fine-tune", owner="owner", limit=1000).id
    settings = {"training_file": broken, "validation_file": None}
    with pytest.raises(InvalidTrainingData, match="line 2: `prompt`"):
        stores.run(stores.attempt("job_fails", settings=settings))
    attempt = stores.attempt("job_skips", settings={**settings, "on_broken_row": "skip"})
    result = stores.run(attempt)
    name, report = attempt.events[0]
    assert name == "data"
    assert (report["training"]["rows"], report["training"]["broken_rows"]) == (2, 1)
    assert report["training"]["errors"][0]["line"] == 2
    assert result["metrics"]["training_data"]["broken_rows"] == 1


def test_a_tracker_that_is_not_installed_is_refused(stores: Stores) -> None:
    """Before any work on the device, with what to do."""
    with pytest.raises(InvalidRequest, match="wandb is not installed on the worker") as raised:
        stores.run(stores.attempt("job_tracked", settings={"report_to": ["wandb"]}))
    assert raised.value.param == "report_to"
