"""The batcher's promises: strangers share forwards and nobody notices, and a job's end is its own."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tandem.errors import (
    Cancelled,
    Draining,
)
from tandem.specs import ClassificationParameters, EmbeddingParameters, FillMaskParameters
from tests.unit.encoders.batchers import WAIT_SECONDS, Gate, started
from tests.unit.encoders.tiny_models import ARCHITECTURES, texts_for, tiny_model
from worker.encoders import EncoderBatcher
from worker.tasks import ENCODER_TASKS
from worker.tasks.feature_extraction import FeatureExtraction

TOLERANCE = 1e-5
"""Between a batch with strangers and a text alone, float32: rounding in another order of summation."""
PARAMETERS: dict[str, Any] = {
    "feature-extraction": EmbeddingParameters(),
    "fill-mask": FillMaskParameters(top_k=3),
    "text-classification": ClassificationParameters(),
}


def flattened(value: Any) -> tuple[list[Any], list[float]]:
    """A result's structure with its floats taken out, and the floats."""
    floats: list[float] = []

    def walk(node: Any) -> Any:
        if isinstance(node, float):
            floats.append(node)
            return "float"
        if isinstance(node, dict):
            return {key: walk(entry) for key, entry in node.items()}
        return [walk(entry) for entry in node] if isinstance(node, list) else node

    return walk(value), floats


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("task", ENCODER_TASKS)
def test_batched_with_strangers_equals_alone(task: str, architecture: str) -> None:
    """Eight threads send the texts in different orders: each gets what a batcher of its own gives it."""
    _model, tokenizer = tiny_model(architecture, task)
    texts = texts_for(task, tokenizer)
    with started(task, architecture=architecture) as batcher:
        alone = {text: flattened(batcher.run([text], PARAMETERS[task])[0]) for text in texts}
    answers: dict[int, list[Any]] = {}
    with started(task, architecture=architecture, max_wait_seconds=0.2) as batcher:

        def caller(number: int) -> None:
            answers[number] = batcher.run(texts[number:] + texts[:number], PARAMETERS[task])

        threads = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert batcher.counts.batches < 8 * len(texts) / 2, "strangers shared no forwards"
    for number in range(8):
        for text, result in zip(texts[number:] + texts[:number], answers[number], strict=True):
            structure, floats = flattened(result)
            assert structure == alone[text][0]
            assert floats == pytest.approx(alone[text][1], abs=TOLERANCE)


def test_jobs_with_other_parameters_share_a_batch() -> None:
    gate = Gate()
    with started("text-classification", serving_turn=gate) as batcher:
        first = batcher.submit(["yes"], ClassificationParameters())
        assert gate.reached.wait(WAIT_SECONDS)
        one = batcher.submit(["a book"], ClassificationParameters(top_k=1))
        raw = batcher.submit(["a book"], ClassificationParameters(function_to_apply="none"))
        gate.opened.set()
        assert len(one.result(WAIT_SECONDS)[0]) == 1
        assert len(raw.result(WAIT_SECONDS)[0]) == 3
        assert first.result(WAIT_SECONDS)
        assert batcher.counts.batches == 2


def test_a_newcomer_does_not_wait_for_all_rows_of_a_large_job() -> None:
    gate = Gate()
    with started(serving_turn=gate, budget=20) as batcher:
        large = batcher.submit(["the cat sat on the mat"] * 200, EmbeddingParameters())
        assert gate.reached.wait(WAIT_SECONDS)
        large_was_done: Future[bool] = Future()
        small = batcher.submit(["a book"], EmbeddingParameters())
        small.add_done_callback(lambda _future: large_was_done.set_result(large.done()))
        gate.opened.set()
        assert large_was_done.result(WAIT_SECONDS) is False
        assert len(large.result(WAIT_SECONDS)) == 200


def test_cancel_drops_the_rows_that_have_not_run() -> None:
    gate = Gate()
    with started(serving_turn=gate, budget=20) as batcher:
        job = batcher.submit(["the cat sat on the mat"] * 100, EmbeddingParameters())
        assert gate.reached.wait(WAIT_SECONDS)
        assert job.cancel()
        gate.opened.set()
        assert len(batcher.run(["yes"], EmbeddingParameters())) == 1
        assert batcher.counts.batches == 2
        with pytest.raises(CancelledError):
            job.result()


def test_should_stop_ends_its_job_between_batches_with_what_it_raises() -> None:
    gate = Gate()
    stop = threading.Event()

    def should_stop() -> None:
        if stop.is_set():
            raise Cancelled

    with started(serving_turn=gate, budget=20) as batcher:
        job = batcher.submit(["the cat sat on the mat"] * 100, EmbeddingParameters(), should_stop=should_stop)
        other = batcher.submit(["a book"] * 10, EmbeddingParameters())
        assert gate.reached.wait(WAIT_SECONDS)
        stop.set()
        gate.opened.set()
        with pytest.raises(Cancelled):
            job.result(WAIT_SECONDS)
        assert len(other.result(WAIT_SECONDS)) == 10


def test_a_batcher_is_busy_while_jobs_are_unfinished_and_each_forward_is_progress() -> None:
    """Both are read while the batcher's thread stands still in a turn, as the stall watch reads them."""
    gate = Gate()
    with started(serving_turn=gate, budget=20) as batcher:
        assert (batcher.is_busy(), batcher.progress()) == (False, 0)
        job = batcher.submit(["the cat sat on the mat"] * 6, EmbeddingParameters())
        assert gate.reached.wait(WAIT_SECONDS)
        before = batcher.progress()
        with ThreadPoolExecutor(1) as watch, batcher._changed:  # held, as by a thread that hung meanwhile
            assert watch.submit(batcher.is_busy).result(WAIT_SECONDS)
            assert watch.submit(batcher.progress).result(WAIT_SECONDS) == before
        gate.opened.set()
        job.result(WAIT_SECONDS)
        assert not batcher.is_busy()
        assert batcher.progress() == before + 3


def test_every_forward_has_a_turn_of_its_own() -> None:
    turns: list[str] = []

    @contextmanager
    def serving_turn() -> Iterator[None]:
        turns.append("begin")
        yield
        turns.append("end")

    with started(serving_turn=serving_turn, budget=20) as batcher:
        batcher.run(["the cat sat on the mat"] * 6, EmbeddingParameters())
        assert batcher.counts.batches == 3
    assert turns == ["begin", "end"] * 3


def test_a_full_batch_does_not_wait_for_company() -> None:
    with started(max_wait_seconds=1000.0, budget=20) as batcher:
        assert len(batcher.submit(["the cat sat"] * 8, EmbeddingParameters()).result(WAIT_SECONDS)) == 8


def test_what_was_submitted_before_the_start_runs_after_it() -> None:
    model, tokenizer = tiny_model("bert", "feature-extraction")
    batcher = EncoderBatcher(FeatureExtraction(model, tokenizer), budget=100, max_wait_seconds=0.0)
    job = batcher.submit(["yes"], EmbeddingParameters())
    batcher.start()
    assert len(job.result(WAIT_SECONDS)) == 1
    batcher.stop()


def test_no_texts_give_no_results() -> None:
    with started() as batcher:
        assert batcher.run([], EmbeddingParameters()) == []


def test_stop_finishes_the_running_batch_and_fails_the_rest_with_draining() -> None:
    gate = Gate()
    with started(serving_turn=gate, budget=20) as batcher:
        running = batcher.submit(["yes"], EmbeddingParameters())
        assert gate.reached.wait(WAIT_SECONDS)
        left = batcher.submit(["a book"] * 100, EmbeddingParameters())
        stopping = threading.Thread(target=batcher.stop)
        stopping.start()
        gate.opened.set()
        stopping.join(WAIT_SECONDS)
        assert len(running.result(WAIT_SECONDS)) == 1
        with pytest.raises(Draining):
            left.result(WAIT_SECONDS)
        with pytest.raises(Draining):
            batcher.submit(["yes"], EmbeddingParameters())
