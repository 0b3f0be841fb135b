"""Which batcher a job's rows go through."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import AutoModel, AutoTokenizer

from tandem.catalogue import CatalogueEntry
from tests.unit.encoders.adapter_folders import save_body
from tests.unit.worker.unqueued_attempt import UnqueuedAttempt
from worker.batchers import Batchers
from worker.encoders import EncoderBatcher
from worker.encoders.adapted_body import AdaptedBody
from worker.encoders.adapter_task import AdapterTask
from worker.media.limits import MediaLimits
from worker.residency import ResidentModels
from worker.resident_model import ADAPTERS, ResidentModel
from worker.runners.inference import InferenceRunner
from worker.tasks.feature_extraction import FeatureExtraction

TEXTS = ["the cat sat on the mat", "a ship at sea"]


class Pins:
    """As much of an adapter store as rows of the base need."""

    def pinned(self, base: str) -> frozenset[str]:
        return frozenset({f"ft:{base}:pinned"})


@pytest.fixture
def resident(tmp_path: Path) -> Iterator[ResidentModel]:
    folder = save_body("bert", tmp_path)
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def make(task: str) -> EncoderBatcher:
        body: Any = AdaptedBody(model, adapter_slots=2, adapter_rank=4) if task == ADAPTERS else model
        made = AdapterTask(body, tokenizer) if task == ADAPTERS else FeatureExtraction(body, tokenizer)
        batcher = EncoderBatcher(made, budget=4096, max_wait_seconds=0)
        batcher.start()
        return batcher

    entry = CatalogueEntry(name="tiny", tasks=("feature-extraction",), folder=folder)
    resident = ResidentModel(
        entry,
        "feature-extraction",
        model,
        tokenizer,
        engine=None,
        batchers=Batchers(make),
        weight_bytes=0,
        load_seconds=0.0,
        unwatch=lambda: None,
    )
    yield resident
    resident.close()


def test_embeddings_of_the_base_share_the_adapters_batches_once_there_are_adapters(resident: ResidentModel) -> None:
    """One batcher reads all that the body reads, and the answers stay what they were."""
    stores: Any = Pins()
    runner = InferenceRunner(
        ResidentModels(1, measure=lambda _: 1, load=lambda _: resident),
        stores,
        stores,
        adapter_rank=4,
        media_limits=MediaLimits(),
    )
    attempt = UnqueuedAttempt()
    attempt.job.spec.update(kind="inference", task="feature-extraction", model="tiny", inputs=TEXTS)

    before = runner(attempt)
    assert {task: counts.rows for task, counts in resident.batchers.counts().items()} == {"feature-extraction": 2}
    resident.batchers.get(ADAPTERS)
    after = runner(attempt)
    rows = {task: counts.rows for task, counts in resident.batchers.counts().items()}
    assert rows == {"feature-extraction": 2, ADAPTERS: 2}
    assert cast("AdapterTask", resident.batchers.task(ADAPTERS)).body.pinned_adapters == {"ft:tiny:pinned"}
    for row, again in zip(before["rows"], after["rows"], strict=True):
        assert again == pytest.approx(row, abs=1e-6)
