"""Fine-tuning jobs of the tasks with a head: which resident they train on, and what they publish.

The models, the training and the stores are real; the attempt is the stand-in of test_finetune_checkpoints.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tandem.adapters import AdapterManifest, AdapterStore
from tandem.artifacts import ArtifactStore
from tandem.catalogue import CatalogueEntry
from tandem.errors import InvalidRequest, InvalidTrainingData
from tandem.files import FileStore
from tandem.job_store import JobStore
from tandem.settings import Settings
from tandem.specs.finetune import FineTuneTask
from tests.unit.training.tiny_encoders import ROWS, TOKENIZERS, tiny_body
from tests.unit.worker.test_finetune_checkpoints import StandInAttempt
from worker.attempt import Attempt
from worker.batchers import Batchers
from worker.residency import ResidentModels
from worker.resident_model import ResidentModel
from worker.runners.finetune import FineTuneRunner
from worker.stall import StallWatch
from worker.training.turns import Turns


class Bench:
    """A worker whose catalogue has one encoder, and the stores that it reaches."""

    def __init__(self, jobs: JobStore, artifacts: ArtifactStore) -> None:
        self.files = FileStore(jobs, artifacts)
        self.adapters = AdapterStore(jobs, artifacts)
        self.artifacts = artifacts
        self.loaded: list[tuple[str, str]] = []
        residents = ResidentModels(1, measure=lambda _: 1, load=self._load)
        watch = StallWatch(60.0, pytest.fail)
        self._run = FineTuneRunner(
            residents, self.files, self.adapters, artifacts, Turns(0.0), watch, adapter_rank=64
        )

    def _load(self, key: tuple[str, str]) -> ResidentModel:
        self.loaded.append(key)
        return ResidentModel(
            entry=CatalogueEntry(name="tiny", tasks=("feature-extraction",), hub="tiny/bert", revision="1"),
            task="feature-extraction",
            model=tiny_body(),
            tokenizer=TOKENIZERS["bert"],
            engine=None,
            batchers=Batchers(pytest.fail),
            weight_bytes=1,
            load_seconds=0.0,
            unwatch=lambda: None,
        )

    def upload(self, lines: list[Any]) -> str:
        content = "\n".join(json.dumps(line) for line in lines).encode()
        file = self.files.create(
            [content], filename="rows.jsonl", purpose="fine-tune", owner="owner", limit=len(content)
        )
        return file.id

    def run(
        self, task: FineTuneTask, training: list[Any], validation: list[Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        spec = {
            "kind": "finetune",
            "task": task,
            "model": "tiny",
            "training_file": self.upload(training),
            "validation_file": None if validation is None else self.upload(validation),
            "hyperparameters": {"max_steps": 2, "batch_size": 4},
            **more,
        }
        return self._run(cast("Attempt", StandInAttempt(spec, f"job_{task}")))

    def published(self, result: dict[str, Any]) -> AdapterManifest:
        return self.adapters.get(result["adapter"])


@pytest.fixture
def bench(valkey_url: str, tmp_path: Path) -> Iterator[Bench]:
    settings = Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path / 'artifacts'}")
    artifacts = ArtifactStore(settings.artifacts_url)
    jobs = JobStore(settings, artifacts)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is far too small for two
    yield Bench(jobs, artifacts)
    torch.set_num_threads(threads)
    jobs.close()


def lines(task: FineTuneTask) -> list[dict[str, Any]]:
    return [row.model_dump(mode="json", exclude_none=True) for row in ROWS[task]()]


@pytest.mark.parametrize(
    ("task", "labels", "figure"),
    [
        ("text-classification", ("animals", "money", "weather"), "accuracy"),
        ("token-classification", ("B-LOC", "B-PER", "I-PER", "O"), "f1"),
        ("question-answering", (), "exact_match"),
    ],
)
def test_an_adapter_with_its_head_is_published(
    bench: Bench, task: FineTuneTask, labels: tuple[str, ...], figure: str
) -> None:
    """Trained on the body that makes embeddings, whatever the task; the manifest names the labels, the folder has
    the headed model's configuration, and the result has the figures before and after."""
    result = bench.run(task, lines(task), lines(task))
    assert bench.loaded == [("tiny", "feature-extraction")]
    manifest = bench.published(result)
    assert (manifest.task, manifest.labels) == (task, labels)
    assert set(manifest.files) == {"adapter_model.safetensors", "adapter_config.json", "config.json"}
    if labels:
        config = json.loads(bench.artifacts.read(manifest.files["config.json"]))
        assert tuple(config["id2label"].values()) == labels
    assert 0.0 <= result["metrics"]["validation_figures_before"][figure] <= 1.0
    assert 0.0 <= result["metrics"]["validation_figures_after"][figure] <= 1.0
    evaluations = [event for event in result["metrics"]["history"] if event["type"] == "evaluation"]
    assert figure in evaluations[-1]


def test_rows_of_another_task_fail_the_job_by_line(bench: Bench) -> None:
    """As they do when the job is submitted, for a file that was put there behind its back."""
    with pytest.raises(InvalidTrainingData, match="line 1: has no `text`; a row for text-classification is"):
        bench.run("text-classification", lines("token-classification"))


@pytest.mark.parametrize("method", [{"type": "lora", "r": 65}, {"type": "loha", "r": 9}, {"type": "vera", "r": 128}])
def test_a_rank_that_no_slot_holds_is_refused_before_the_training(bench: Bench, method: dict[str, Any]) -> None:
    """Symptom: such an adapter was trained, said to be served in the batch, and refused by each job that named it.
    Cause: only the batch looked at its slots' rank, and encoders serve no adapter apart. Fix: the training looks."""
    with pytest.raises(InvalidRequest, match=r"slots hold 64\. Lower it") as raised:
        bench.run("text-classification", lines("text-classification"), method=method)
    assert raised.value.param == "method"
